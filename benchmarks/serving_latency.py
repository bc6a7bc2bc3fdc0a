"""One image on a CPU: our formats, with and without token merging, against PyTorch, onnxruntime and OpenVINO.

    pip install -e '.[openvino]' nncf
    python benchmarks/serving_latency.py --images digits

ViT-B/16 at 224, batch 1, in turns in one run; OpenVINO is left out, and said, if it is not installed. `--images` is
digits, or a folder with train/ and test/, which have one folder per class. Token merging, and then the image size too,
are chosen for each format as `vitcifar optimize` tries them: the fewest tokens with which it predicts as the network
does on 99 % of the validation images; the agreement is then that on test images, and the fastest of our formats that
has 99 % there too is the one that counts.

Without `--weights` the backbone is random and only the head is trained. On photos such a network is right on a quarter:
its margins are small, and agreement says less than it would of a fine-tuned network. `digits_weights.py` trains one on
digits. The last line is our median over the fastest peer's, the lines before it over eager PyTorch's too.
"""

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from sklearn.linear_model import LogisticRegression

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.data.splits import read_splits
from vitcifar.inference.machine import this_machine
from vitcifar.inference.openvino_session import fastest_precision
from vitcifar.inference.session import OnnxClassifier
from vitcifar.model.network import Classifier, build_network
from vitcifar.model.predict import predict_embeddings, predict_logits
from vitcifar.model.token_merging import token_counts
from vitcifar.registry.variants import Tokens, combinations, make_variant
from vitcifar.release.export import export_onnx
from vitcifar.release.latency import sample, time_in_turns
from vitcifar.release.onnx_graph import save_graph

MIN_AGREEMENT = 0.99
COUNTS = (24, 20, 18, 16, 14, 13, 12, 10, 8, 6, 4, 2)  # merged pairs
Call = Callable[[], Any]


def build(options: argparse.Namespace, train: ImageDataset) -> Classifier:
    """The network, with its head trained on frozen features unless it comes with weights."""
    network = build_network(TrainConfig(arch=options.arch, weights=options.weights), train.class_names).eval()
    if options.weights == "none":
        solver = LogisticRegression(C=10, max_iter=2000)
        solver.fit(predict_embeddings(network, train.images), train.labels)
        network.head.load_state_dict({"weight": torch.tensor(solver.coef_), "bias": torch.tensor(solver.intercept_)})
    return network


def agreement(path: Path, images: np.ndarray, expected: np.ndarray, openvino: str = "") -> float:
    return float((OnnxClassifier(path, openvino=openvino).logits(images).argmax(axis=1) == expected).mean())


def allowed(images: np.ndarray) -> int:
    """How many predictions may change."""
    return int((1 - MIN_AGREEMENT) * len(images) + 1e-9)


def num_changed(path: Path, images: np.ndarray, expected: np.ndarray, openvino: str = "") -> int:
    """How many predictions a file changes; more than `allowed` are not all counted."""
    classifier, found = OnnxClassifier(path, openvino=openvino), 0
    for start in range(0, len(images), 10):
        part = slice(start, start + 10)
        found += int((classifier.logits(images[part]).argmax(axis=1) != expected[part]).sum())
        if found > allowed(images):
            break
    return found


def choose(
    network: Classifier,
    config: TrainConfig,
    folder: Path,
    validation: np.ndarray,
    expected: np.ndarray,
    choices: Iterable[Tokens],
    openvino: str = "",
) -> Tokens:
    """The first of the choices with which int8, or OpenVINO in a precision, predicts what is `expected` on validation;
    every token if none does."""
    for tokens in choices:
        save_variant(network, config, path := folder / "tried.onnx", tokens, int8=not openvino)
        num_other = num_changed(path, validation, expected, openvino)
        name = f"OpenVINO {openvino}" if openvino else "int8"
        share = num_tokens(network, tokens) / num_tokens(network, Tokens(image_size=network.image_size))
        what = f"{tokens.image_size} px, {tokens.merged} merged, {share:.2f} of the tokens"
        print(f"{what}: {name} changes {num_other} of {len(validation)} predictions", flush=True)
        if num_other <= allowed(validation):
            return tokens
    return Tokens(image_size=network.image_size)


def num_tokens(network: Classifier, tokens: Tokens) -> int:
    """The tokens of all blocks together, to which the time of a prediction is roughly proportional."""
    start = (tokens.image_size // network.backbone.patch_size) ** 2 + 1
    counts = token_counts(start, tokens.token_merging, len(network.blocks), tokens.merging_schedule)
    return sum(counts[:-1])


def save_variant(network: Classifier, config: TrainConfig, path: Path, tokens: Tokens, *, int8: bool) -> None:
    """Write the graph of a network at another image size and with merged tokens."""
    save_graph(make_variant(network, config, tokens), path, **labels(network), int8=int8)


def labels(network: Classifier) -> dict[str, Any]:
    return {"class_names": network.class_names, "release_id": "benchmark"}


def write_models(network: Classifier, folder: Path) -> dict[str, Path]:
    """The float file, and what onnxruntime's own tool makes of it."""
    paths = {name: folder / f"{name.replace(' ', '_')}.onnx" for name in ("ort float", "ort quantize_dynamic")}
    export_onnx(network, paths["ort float"], **labels(network))
    quantize_dynamic(
        paths["ort float"],
        paths["ort quantize_dynamic"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    return paths


def write_ours(
    network: Classifier, config: TrainConfig, folder: Path, validation: np.ndarray
) -> dict[str, tuple[Path, str]]:
    """Our graphs, and the precision in which OpenVINO runs them ("" = onnxruntime)."""
    expected = predict_logits(network, validation).argmax(axis=1)
    precision = fastest_precision()
    formats = {"float": "", "int8": "", **({f"OpenVINO {precision}": precision} if precision else {})}
    own = Tokens(image_size=network.image_size)
    choices = combinations(network, token_merging=(*COUNTS, 0))
    choices.sort(key=lambda tokens: num_tokens(network, tokens))
    ours = {}
    for format, openvino in formats.items():
        chosen = [own]
        if format != "float":
            search = [tokens for tokens in choices if tokens.image_size == own.image_size]
            merged = choose(network, config, folder, validation, expected, search, openvino)
            fewer = num_tokens(network, merged)
            search = [one for one in choices if one.image_size < own.image_size and num_tokens(network, one) < fewer]
            chosen += [merged, choose(network, config, folder, validation, expected, search, openvino)]
        for tokens in dict.fromkeys(chosen):
            name = f"ours {format}"
            name += f" {tokens.image_size} px" if tokens.image_size < own.image_size else ""
            name += f" {tokens.merged} merged" if tokens.token_merging else ""
            save_variant(network, config, path := folder / f"{name}.onnx", tokens, int8=format == "int8")
            ours[name] = (path, openvino)
    return ours


def torch_calls(network: Classifier, image: np.ndarray) -> Iterator[tuple[str, Call]]:
    """Eager PyTorch, in float32 and under autocast to bfloat16."""
    images = torch.from_numpy(image[None])

    @torch.inference_mode()
    def eager(bf16: bool) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network(images).float().numpy()

    yield "torch fp32", lambda: eager(False)
    yield "torch bf16", lambda: eager(True)


def openvino_calls(path: Path, image: np.ndarray, threads: int, calibration: np.ndarray) -> Iterator[tuple[str, Call]]:
    """OpenVINO on the exported float file in float32 and bfloat16, and in int8 by NNCF, alone and with bfloat16."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    models = {"": model}
    if importlib.util.find_spec("nncf"):
        import nncf

        data = nncf.Dataset([{"image": one[None]} for one in calibration])
        kind = nncf.ModelType.TRANSFORMER
        models["int8 "] = nncf.quantize(model.clone(), data, subset_size=len(calibration), model_type=kind)
    for prefix, one in models.items():
        for precision in ("f32", "bf16"):
            settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
            compiled = core.compile_model(one, "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
            infer = compiled.create_infer_request().infer
            yield f"OpenVINO {prefix}{precision}", lambda infer=infer: infer({"image": image[None]})["logits"]


def plain(path: Path, image: np.ndarray, threads: int) -> Call:
    """A file in onnxruntime as it comes, but for the number of threads."""
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["logits"], {"image": image[None]})[0]


def served(path: Path, openvino: str, image: np.ndarray, threads: int) -> Call:
    """A file as the page, REST and the command line open it."""
    classifier = OnnxClassifier(path, num_threads=threads, openvino=openvino)
    return lambda: classifier.logits([image])


def report(times: Mapping[str, np.ndarray], calls: Mapping[str, Call], agreeing: Collection[str]) -> None:
    """Every side's percentiles and its distance from eager PyTorch, then the ratios of the fastest of ours that is
    `agreeing`."""
    expected = calls["torch fp32"]()
    for name, values in times.items():
        off = np.abs(np.asarray(calls[name]()) - expected).max()
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        rest = f"p99 {p99:7.1f}  least {values.min():7.1f}  logits off by {off:.4f}"
        print(f"{name:<29} p50 {p50:7.1f} ms  p95 {p95:7.1f}  {rest}")
    peers = {name: values for name, values in times.items() if not name.startswith("ours")}
    fastest = min(peers, key=lambda name: float(np.median(peers[name])))
    our = min(agreeing, key=lambda name: float(np.median(times[name])))
    for peer in ("torch fp32", fastest):
        ratio = np.median(times[our]) / np.median(times[peer])
        print(f"{our} / {peer}: {ratio:.2f} at the median, {times[our].min() / times[peer].min():.2f} at the least")
    print(f"ratio {np.median(times[our]) / np.median(times[fastest]):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="vit_b_16")
    parser.add_argument("--weights", default="none", help="none, or a state dict")
    parser.add_argument(
        "--images",
        default=os.environ.get("VITCIFAR_SAMPLE", "digits"),
        help="digits, or a folder with train/ and test/",
    )
    parser.add_argument("--per-class", type=int, default=20, help="images per class of each split")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=0, help="0 = as many as there are cores")
    options = parser.parse_args()
    machine, number = this_machine(), options.per_class
    threads = options.threads or machine.num_cores
    torch.set_num_threads(threads)
    per_class = dict.fromkeys(("train_per_class", "validation_per_class", "test_per_class"), number)
    where = {"data": "digits"} if options.images == "digits" else {"data": "folder", "data_dir": options.images}
    splits = read_splits(TrainConfig(**where, **per_class))
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    print(f"{machine.processor}, {threads} threads, {' '.join(machine.flags)}; {versions}")
    network = build(options, splits.train)
    image = sample(network.image_size)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_models(network, Path(folder))
        ours = write_ours(network, TrainConfig(arch=options.arch), Path(folder), splits.validation.images)
        expected = predict_logits(network, splits.test.images).argmax(axis=1)
        accuracy = (expected == splits.test.labels).mean()
        print(f"accuracy of the network on {len(splits.test)} test images: {accuracy:.1%}")
        quantized = {"ort quantize_dynamic": (paths["ort quantize_dynamic"], "")}
        agreements = {
            name: agreement(path, splits.test.images, expected, openvino)
            for name, (path, openvino) in (quantized | ours).items()
        }
        for name, found in agreements.items():
            print(f"{name}: agrees with the network on {found:.1%} of the test images")
        calls = dict(torch_calls(network, image))
        calls |= {name: plain(path, image, threads) for name, path in paths.items()}
        calls |= {name: served(path, openvino, image, threads) for name, (path, openvino) in ours.items()}
        if importlib.util.find_spec("openvino"):
            calls |= openvino_calls(paths["ort float"], image, threads, splits.train.images[:20])
        else:
            print("OpenVINO is left out: pip install openvino nncf")
        print(f"{options.arch} at {network.image_size}, one image, {options.runs} runs in turns")
        agreeing = [name for name in ours if agreements[name] >= MIN_AGREEMENT]
        report(time_in_turns(calls, num_runs=options.runs), calls, agreeing)


if __name__ == "__main__":
    main()
