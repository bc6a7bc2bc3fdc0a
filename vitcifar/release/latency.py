"""Latency of one prediction per format of a release and number of threads, on one machine."""

import contextlib
import dataclasses
import functools
import json
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.metrics import evaluate
from vitcifar.inference.machine import Machine, this_machine
from vitcifar.inference.openvino_session import fastest_precision
from vitcifar.inference.session import OnnxClassifier
from vitcifar.progress import bar
from vitcifar.release.manifest import INT8_FILE, ONNX_FILE, PT2_FILE, Manifest
from vitcifar.release.served import int8_is_exact

if TYPE_CHECKING:
    from torch import Tensor

    from vitcifar.model.network import Classifier

NUM_RUNS = 30
TURN_RUNS = 5
# onnxruntime's threads spin for 45 ms after a run, torch's for 9 ms (onnxruntime 1.32, torch 2.13, 2 cores).
REST_SECONDS = 0.1
Logits = Callable[[np.ndarray | Sequence[np.ndarray]], np.ndarray]  # images, uint8 (H, W, 3) each -> logits (N, K)
Format = tuple[Callable[[int], Logits], Path | None]  # opens it with a number of threads; its file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One format of a release with one number of threads; times in milliseconds, batch size 1."""

    format: str  # torch, pt2, onnx-fp32, onnx-int8, openvino-fp32, openvino-bf16
    num_threads: int
    file_bytes: int
    accuracy: float | None
    cold_ms: float  # opening the file and the first prediction; torch has no file, so its first prediction alone
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """The latency of every format of a release, measured in turns on one machine."""

    machine: Machine
    image_size: int
    num_runs: int
    rows: tuple[Row, ...]

    def row(self, format: str, num_threads: int) -> Row | None:
        return next((row for row in self.rows if (row.format, row.num_threads) == (format, num_threads)), None)

    def with_accuracies(self, accuracies: Mapping[str, float]) -> "LatencyTable":
        """The table with the accuracies of the formats in `accuracies`, None for the others."""
        rows = (dataclasses.replace(row, accuracy=accuracies.get(row.format)) for row in self.rows)
        return dataclasses.replace(self, rows=tuple(rows))

    def rows_as_text(self) -> list[list[str]]:
        """The header and the rows as strings: size in MB, accuracy in percent, times in ms, "-" = unknown."""
        header = ["format", "threads", "size MB", "accuracy", "cold ms", "p50 ms", "p95 ms", "p99 ms"]
        rows = [
            [
                row.format,
                str(row.num_threads),
                f"{row.file_bytes / 1e6:.1f}" if row.file_bytes else "-",
                "-" if row.accuracy is None else f"{row.accuracy:.1%}",
                f"{row.cold_ms:.1f}",
                *(f"{time:.2f}" for time in (row.p50_ms, row.p95_ms, row.p99_ms)),
            ]
            for row in self.rows
        ]
        return [header, *rows]

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "fingerprint": self.machine.fingerprint}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "LatencyTable":
        fields = json.loads(text)
        fields.pop("fingerprint")
        machine = {**fields["machine"], "flags": tuple(fields["machine"]["flags"])}
        rows = tuple(Row(**_upgrade_row(row)) for row in fields["rows"])
        return cls(**{**fields, "machine": Machine(**machine), "rows": rows})


def _upgrade_row(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row of vitcifar 0.1 to today's names."""
    if "form" not in row:
        return row
    name = {"onnx": "onnx-fp32", "int8": "onnx-int8"}.get(row["form"], row["form"])
    return {"format": name, **{key: value for key, value in row.items() if key != "form"}}


def time_in_turns(calls: Mapping[str, Callable[[], Any]], *, num_runs: int = NUM_RUNS) -> dict[str, np.ndarray]:
    """Milliseconds (num_runs,) of each call; the calls take turns, so that other load on the machine affects all alike.

    A turn starts with a rest, in which the threads of the previous call stop spinning, and an untimed call. Without
    the rest a call would share its cores with spinning threads.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for start in bar(range(0, num_runs, TURN_RUNS), "Latency", "turns"):
        for name, call in calls.items():
            time.sleep(REST_SECONDS)
            call()
            times[name] += timeit.repeat(call, number=1, repeat=min(TURN_RUNS, num_runs - start))
    return {name: 1e3 * np.array(values) for name, values in times.items()}


def onnx_p95(classifiers: Sequence[OnnxClassifier]) -> list[float]:
    """The 95th percentile in milliseconds of one image for each open ONNX model, measured in turns."""
    image = sample(classifiers[0].image_size)
    calls = {str(index): functools.partial(model.logits, [image]) for index, model in enumerate(classifiers)}
    return [float(np.percentile(times, 95)) for times in time_in_turns(calls).values()]


def sample(image_size: int) -> np.ndarray:
    """A fixed image of noise, uint8 (S, S, 3)."""
    return np.random.default_rng(0).integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)


def latency_table(
    release: Manifest,
    *,
    network: "Classifier | None" = None,
    dataset: ImageDataset | None = None,
    threads: Sequence[int] = (),
    num_runs: int = NUM_RUNS,
) -> LatencyTable:
    """Measure every format that a pulled release has on this machine, and `network` in eager PyTorch if it is given.

    With `dataset` each format is also evaluated on it. `threads` defaults to 1 and all cores. Raises ReleaseError.
    """
    machine = this_machine()
    counts = sorted({*threads} or {1, machine.num_cores})
    with contextlib.ExitStack() as stack:
        if network is not None:
            from vitcifar.model.network import evaluation_mode

            stack.enter_context(evaluation_mode(network, "cpu"))
        formats = _formats(release, network)
        if formats.keys() & {"torch", "pt2"}:
            import torch

            stack.callback(torch.set_num_threads, torch.get_num_threads())
        rows = [row for count in counts for row in _rows(release, formats, count, num_runs)]
        table = LatencyTable(machine=machine, image_size=release.image_size, num_runs=num_runs, rows=tuple(rows))
        if dataset is None:
            return table
        names, images = release.class_names, dataset.images
        logits = {format: open_format(counts[-1])(images) for format, (open_format, _) in formats.items()}
    return table.with_accuracies({format: evaluate(z, dataset.labels, names).accuracy for format, z in logits.items()})


def _rows(release: Manifest, formats: "Mapping[str, Format]", num_threads: int, num_runs: int) -> list[Row]:
    image, calls, cold = sample(release.image_size), {}, {}
    for name, (open_format, _) in formats.items():
        start = time.perf_counter()
        calls[name] = functools.partial(open_format(num_threads), [image])
        calls[name]()
        cold[name] = 1e3 * (time.perf_counter() - start)
    return [
        Row(
            format=name,
            num_threads=num_threads,
            file_bytes=path.stat().st_size if (path := formats[name][1]) else 0,
            accuracy=None,
            cold_ms=round(cold[name], 3),
            **{f"p{p}_ms": round(float(np.percentile(times, p)), 3) for p in (50, 95, 99)},
        )
        for name, times in time_in_turns(calls, num_runs=num_runs).items()
    ]


def _formats(release: Manifest, network: "Classifier | None") -> dict[str, Format]:
    found: dict[str, Format] = {}
    if network is not None:
        found["torch"] = (functools.partial(_torch_logits, network), None)
    if (pt2 := release.path(PT2_FILE)).is_file():
        found["pt2"] = (functools.partial(_pt2_logits, release), pt2)
    for name, file in (("onnx-fp32", ONNX_FILE), ("onnx-int8", INT8_FILE)):
        if file in release.files and (file != INT8_FILE or int8_is_exact(release)):
            found[name] = (functools.partial(_onnx_logits, release.path(file)), release.path(file))
    if (precision := fastest_precision()) and ONNX_FILE in release.files:
        path = release.path(ONNX_FILE)
        found[f"openvino-{precision}"] = (functools.partial(_onnx_logits, path, openvino=precision), path)
    return found


def _onnx_logits(path: Path, num_threads: int, *, openvino: str = "") -> Logits:
    return OnnxClassifier(path, num_threads=num_threads, openvino=openvino).logits


def _torch_logits(network: "Callable[[Tensor], Tensor]", num_threads: int) -> Logits:
    import torch

    def logits(images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        torch.set_num_threads(num_threads)
        with torch.inference_mode():
            return np.concatenate([network(torch.from_numpy(image[None])).numpy() for image in images])

    return logits


def _pt2_logits(release: Manifest, num_threads: int) -> Logits:
    from vitcifar.release.cache import load_module

    module = load_module(release)
    return _torch_logits(lambda images: module(images)[0], num_threads)
