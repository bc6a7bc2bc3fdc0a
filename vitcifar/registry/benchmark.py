"""The latency table of a version: measured on this machine and recorded on the version, one table per machine."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitcifar.data.dataset import ImageDataset
from vitcifar.inference.session import this_machine
from vitcifar.registry.registry import Registry
from vitcifar.registry.version import Version
from vitcifar.release.cache import open_network
from vitcifar.release.latency import NUM_RUNS, LatencyTable, latency_table
from vitcifar.release.manifest import INT8_FILE, Manifest, served_evaluation

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

PREFIX = "latency/"  # then the machine's fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A version and the latency table measured for it."""

    version: int
    table: LatencyTable


def benchmark(
    registry: Registry,
    spec: str | int,
    *,
    dataset: ImageDataset | None = None,
    network: "Classifier | None" = None,
    threads: Sequence[int] = (),
    num_runs: int = NUM_RUNS,
) -> Benchmark:
    """Measure every format of a version on this machine; the table replaces this machine's earlier one.

    `dataset` gives each format its accuracy; without it the accuracies are those of the release's checks. With the
    version's `network` in memory the PyTorch file is neither downloaded nor measured. Raises VitCifarError.
    """
    release = registry.pull(spec, pytorch=network is None)
    assert release.version is not None
    network = network or open_network(release)
    table = latency_table(release, network=network, dataset=dataset, threads=threads, num_runs=num_runs)
    if dataset is None:
        table = table.with_accuracies(checked_accuracies(release))
    registry.tag(release.version, f"{PREFIX}{table.machine.fingerprint}", table.to_json())
    return Benchmark(version=release.version, table=table)


def checked_accuracies(release: Manifest) -> dict[str, float]:
    """The accuracy of each format on the test images, as far as the release's checks record it.

    The float ONNX file has the network's: the parity check requires equal predictions on every test image.
    """
    network, served = release.checks.get("test", {}).get("accuracy"), served_evaluation(release).get("accuracy")
    found = {"torch": network, "onnx-fp32": network, "onnx-int8": served if release.serves == INT8_FILE else None}
    return {format: accuracy for format, accuracy in found.items() if accuracy is not None}


def recorded_tables(registry: Registry, spec: str | int) -> dict[str, LatencyTable]:
    """The tables recorded on a version, by the fingerprint of the machine."""
    return read_tables(registry.show(spec))


def read_tables(version: Version) -> dict[str, LatencyTable]:
    """The tables in a version's tags, by the fingerprint of the machine."""
    tags = version.tags
    return {key.removeprefix(PREFIX): LatencyTable.from_json(tags[key]) for key in tags if key.startswith(PREFIX)}


def recorded_p95(version: Version, release: Manifest) -> float | None:
    """The 95th percentile in ms that this machine recorded for the served file with all cores; None without one."""
    machine = this_machine()
    table = read_tables(version).get(machine.fingerprint)
    row = table.row("onnx-int8" if release.serves == INT8_FILE else "onnx-fp32", machine.num_cores) if table else None
    return row.p95_ms if row else None
