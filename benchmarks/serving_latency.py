"""One image on a CPU: the int8 model of a release against onnxruntime's default float file and eager PyTorch.

    python benchmarks/serving_latency.py

ViT-B/16 at 224 with random weights (time does not depend on them), batch 1, in turns in one run. The last line is the
int8 model's median over onnxruntime's float median; the line before it, over eager PyTorch's.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from vitcifar.config import TrainConfig
from vitcifar.inference.machine import this_machine
from vitcifar.inference.session import OnnxClassifier
from vitcifar.model.network import Classifier, build_network
from vitcifar.release.export import export_onnx
from vitcifar.release.latency import sample, time_in_turns
from vitcifar.release.onnx_graph import build_graph, to_proto

CLASS_NAMES = tuple("abcdefghij")


def build(arch: str) -> Classifier:
    """The network with a head that is not zero."""
    network = build_network(TrainConfig(arch=arch, weights="none"), CLASS_NAMES)
    torch.nn.init.normal_(network.head.weight, std=0.02)
    return network.eval()


def write_models(network: Classifier, folder: Path) -> dict[str, Path]:
    """The float file, what onnxruntime's own tool makes of it, and our graph in float and in int8."""
    labels = {"class_names": CLASS_NAMES, "release_id": "benchmark"}
    paths = {name: folder / f"{name}.onnx" for name in ("float", "quantize_dynamic", "ours_float", "ours_int8")}
    export_onnx(network, paths["float"], **labels)
    for name in ("ours_float", "ours_int8"):
        proto = to_proto(build_graph(network, int8=name == "ours_int8"), network, **labels)
        onnx.save_model(proto, str(paths[name]))
    operators = ["MatMul", "Gemm"]
    quantize_dynamic(
        paths["float"],
        paths["quantize_dynamic"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=operators,
    )
    return paths


def plain(path: Path, image: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """A file in onnxruntime as it comes, but for the number of threads."""
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["logits"], {"image": image[None]})[0]


def ours(path: Path, image: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """A file as the page, REST and the command line open it."""
    classifier = OnnxClassifier(path, num_threads=threads)
    return lambda: classifier.logits([image])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="vit_b_16")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=0, help="0 = as many as there are cores")
    options = parser.parse_args()
    machine = this_machine()
    threads = options.threads or machine.num_cores
    torch.set_num_threads(threads)
    network = build(options.arch)
    image = sample(network.image_size)
    images = torch.from_numpy(image[None])

    @torch.inference_mode()
    def eager() -> torch.Tensor:
        return network(images)

    asks = {"torch": eager}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_models(network, Path(folder))
        sizes = {name: path.stat().st_size / 1e6 for name, path in paths.items()}
        for name, path in paths.items():
            asks[name] = ours(path, image, threads) if name.startswith("ours") else plain(path, image, threads)
    times = time_in_turns(asks, num_runs=options.runs)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    print(f"{machine.processor}, {threads} threads, {' '.join(machine.flags)}; {versions}")
    print(f"{options.arch} at {network.image_size}, one image, {options.runs} runs in turns")
    expected = eager().numpy()
    for name, values in times.items():
        off = np.abs(np.asarray(asks[name]()) - expected).max()
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        print(
            f"{name:<17} p50 {p50:7.1f} ms  p95 {p95:7.1f}  p99 {p99:7.1f}  least {values.min():7.1f}  "
            f"{sizes.get(name, 0):6.1f} MB  logits off by {off:.4f}"
        )
    int8 = times["ours_int8"]
    for name in ("torch", "float"):
        ratio = statistics.median(int8) / statistics.median(times[name])
        print(f"int8 / {name}: {ratio:.2f} at the median, {int8.min() / times[name].min():.2f} at the least")
    print(f"ratio {statistics.median(int8) / statistics.median(times['float']):.2f}")


if __name__ == "__main__":
    main()
