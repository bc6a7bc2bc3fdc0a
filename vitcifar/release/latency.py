"""How long one answer takes, in which format, on which machine: only equal machines are compared."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import ReleaseError
from vitcifar.inference.session import OnnxClassifier, available_cores
from vitcifar.release.manifest import INT8_FILE, ONNX_FILE, PT2_FILE, Manifest

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
PACKAGES = ("numpy", "onnxruntime", "torch")
FORMATS = ("torch", "pt2", "onnx-fp32", "onnx-int8")
NUM_RUNS = 30
TURN_RUNS = 5
# onnxruntime's threads spin for 45 ms after an answer, torch's for 9 (onnxruntime 1.32, torch 2.13, 2 cores).
REST_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides how fast an answer is, besides what else the machine is doing."""

    processor: str
    num_cores: int
    flags: tuple[str, ...]
    system: str
    versions: dict[str, str]

    @property
    def fingerprint(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One format of a release with one number of threads; times in milliseconds, one image at a time."""

    format: str  # one of FORMATS
    num_threads: int
    file_bytes: int
    accuracy: float | None
    cold_ms: float  # opening the file and the first answer
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Every format of a release, measured in turns on one machine."""

    machine: Machine
    image_size: int
    num_runs: int
    rows: tuple[Row, ...]

    def row(self, format: str, num_threads: int) -> Row | None:
        found = [row for row in self.rows if (row.format, row.num_threads) == (format, num_threads)]
        return found[0] if found else None

    def with_accuracies(self, accuracies: Mapping[str, float]) -> "LatencyTable":
        """The table with what is known of the formats' accuracy."""
        rows = (dataclasses.replace(row, accuracy=accuracies.get(row.format)) for row in self.rows)
        return dataclasses.replace(self, rows=tuple(rows))

    def updated(self, now: "LatencyTable") -> "LatencyTable":
        """This table with the rows of a later one from the same machine in place of its own."""
        measured = {(row.format, row.num_threads) for row in now.rows}
        rows = [row for row in self.rows if (row.format, row.num_threads) not in measured]
        order = sorted([*rows, *now.rows], key=lambda row: (row.num_threads, FORMATS.index(row.format)))
        return dataclasses.replace(now, rows=tuple(order))

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
    """A row as vitcifar 0.1 wrote it, in today's names."""
    if "form" not in row:
        return row
    name = {"onnx": "onnx-fp32", "int8": "onnx-int8"}.get(row["form"], row["form"])
    return {"format": name, **{key: value for key, value in row.items() if key != "form"}}


def this_machine() -> Machine:
    """The machine this runs on."""
    processor, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # only Linux has it
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            processor = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = value
    present = set(flags.split())
    return Machine(
        processor=processor,
        num_cores=available_cores(),
        flags=tuple(flag for flag in FLAGS if flag in present),
        system=f"{platform.system()} {platform.machine()}",
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
    )


def time_in_turns(asks: Mapping[str, Callable[[], Any]], *, num_runs: int = NUM_RUNS) -> dict[str, np.ndarray]:
    """Milliseconds (num_runs,) of each; they take turns, so what else the machine does falls on all alike.

    A turn starts with a rest, in which the threads of the one before stop waiting for work, and an answer that is not
    timed. Without the rest a format shares its cores with threads that only spin.
    """
    times: dict[str, list[float]] = {name: [] for name in asks}
    for start in range(0, num_runs, TURN_RUNS):
        for name, ask in asks.items():
            time.sleep(REST_SECONDS)
            ask()
            times[name] += [_milliseconds(ask) for _ in range(min(TURN_RUNS, num_runs - start))]
    return {name: np.array(values) for name, values in times.items()}


def _milliseconds(ask: Callable[[], Any]) -> float:
    start = time.perf_counter()
    ask()
    return 1e3 * (time.perf_counter() - start)


def percentile(times: np.ndarray, percent: float) -> float:
    return float(np.percentile(times, percent))


def onnx_p95(paths: Sequence[Path], *, num_threads: int = 0, num_runs: int = NUM_RUNS) -> list[float]:
    """The 95th percentile in milliseconds of one image for each ONNX file, measured in turns."""
    opened = [OnnxClassifier(path, num_threads=num_threads) for path in paths]
    image = sample(opened[0].image_size)
    asks = {str(index): _ask_onnx(classifier, image) for index, classifier in enumerate(opened)}
    return [percentile(times, 95) for times in time_in_turns(asks, num_runs=num_runs).values()]


def sample(image_size: int) -> np.ndarray:
    """An image of noise, uint8 (S, S, 3), the same every time."""
    return np.random.default_rng(0).integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)


def latency_table(
    release: Manifest,
    *,
    open_network: Callable[[], Any] | None = None,
    dataset: ImageDataset | None = None,
    threads: Sequence[int] = (),
    num_runs: int = NUM_RUNS,
) -> LatencyTable:
    """Measure every format that a pulled release has, and in eager PyTorch the network that `open_network` returns.

    `images` give each format its accuracy. `threads` defaults to 1 and all cores. Raises ReleaseError.
    """
    machine = this_machine()
    counts = sorted({*threads} or {1, machine.num_cores})
    rows = [row for count in counts for row in _rows(release, open_network, count, num_runs)]
    table = LatencyTable(machine=machine, image_size=release.image_size, num_runs=num_runs, rows=tuple(rows))
    if dataset is None:
        return table
    opened = {format: open_format(counts[-1]) for format, (open_format, _) in formats(release, open_network).items()}
    return table.with_accuracies({format: accuracy_of(logits, dataset) for format, logits in opened.items()})


def _rows(release: Manifest, open_network: Callable[[], Any] | None, threads: int, num_runs: int) -> list[Row]:
    image, asks, cold, sizes = sample(release.image_size), {}, {}, {}
    for format, (open_format, path) in formats(release, open_network).items():
        start = time.perf_counter()
        logits = open_format(threads)
        logits([image])
        cold[format] = 1e3 * (time.perf_counter() - start)
        asks[format] = lambda logits=logits: logits([image])
        sizes[format] = path.stat().st_size if path else 0
    times = time_in_turns(asks, num_runs=num_runs)
    return [
        Row(
            format=format,
            num_threads=threads,
            file_bytes=sizes[format],
            accuracy=None,
            cold_ms=round(cold[format], 3),
            p50_ms=round(percentile(times[format], 50), 3),
            p95_ms=round(percentile(times[format], 95), 3),
            p99_ms=round(percentile(times[format], 99), 3),
        )
        for format in asks
    ]


Logits = Callable[[Sequence[np.ndarray]], np.ndarray]


def formats(
    release: Manifest, open_network: Callable[[], Any] | None = None
) -> dict[str, tuple[Callable[[int], Logits], Path | None]]:
    """The formats a release can answer in: name -> (open with so many threads, its file)."""
    found: dict[str, tuple[Callable[[int], Logits], Path | None]] = {}
    if open_network is not None:
        found["torch"] = (lambda threads: _torch_logits(open_network(), threads), None)
    if release.path(PT2_FILE).is_file():
        found["pt2"] = (functools.partial(_pt2_logits, release), release.path(PT2_FILE))
    for format, name in (("onnx-fp32", ONNX_FILE), ("onnx-int8", INT8_FILE)):
        if name in release.files:
            found[format] = (functools.partial(_onnx_logits, release.path(name)), release.path(name))
    return found


def accuracy_of(logits: Logits, dataset: ImageDataset, batch_size: int = 16) -> float:
    """The share of images that a format gets right."""
    answers = []
    for start in range(0, len(dataset), batch_size):
        images = [dataset.images[i] for i in range(start, min(start + batch_size, len(dataset)))]
        answers.append(logits(images).argmax(axis=1))
    return float((np.concatenate(answers) == dataset.labels).mean())


def _ask_onnx(classifier: OnnxClassifier, image: np.ndarray) -> Callable[[], Any]:
    return lambda: classifier.logits([image])


def _onnx_logits(path: Path, threads: int) -> Logits:
    return OnnxClassifier(path, num_threads=threads).logits


def _pt2_logits(release: Manifest, threads: int) -> Logits:
    from vitcifar.release.load import load_module

    module = load_module(release)
    return _torch_logits(lambda images: module(images)[0], threads)


def _torch_logits(network: Any, threads: int) -> Logits:
    import torch

    def logits(images: Sequence[np.ndarray]) -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return np.concatenate([network(torch.from_numpy(image[None])).numpy() for image in images])

    return logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """The same format measured before and now on an equal machine; ratio = now / before at the median."""

    format: str
    num_threads: int
    before_ms: float
    now_ms: float
    ratio: float


def compare_tables(before: LatencyTable, now: LatencyTable) -> list[Change]:
    """What became slower or faster. Raises ReleaseError when the machines are not equal."""
    if before.machine.fingerprint != now.machine.fingerprint:
        raise ReleaseError(
            f"The times were taken on another machine ({before.machine.processor}, {before.machine.num_cores} cores, "
            f"{before.machine.fingerprint}) than this one ({now.machine.processor}, {now.machine.num_cores} cores, "
            f"{now.machine.fingerprint}): only equal machines are compared."
        )
    changes = []
    for row in now.rows:
        earlier = before.row(row.format, row.num_threads)
        if earlier is not None:
            ratio = row.p50_ms / earlier.p50_ms
            changes.append(
                Change(
                    format=row.format,
                    num_threads=row.num_threads,
                    before_ms=earlier.p50_ms,
                    now_ms=row.p50_ms,
                    ratio=ratio,
                )
            )
    return changes
