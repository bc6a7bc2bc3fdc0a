"""The latency table of a version: measured on this machine and recorded on the version, one table per machine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitcifar.data.dataset import ImageDataset
from vitcifar.inference.session import this_machine
from vitcifar.registry.registry import Registry, Version
from vitcifar.release.cache import open_network
from vitcifar.release.latency import NUM_RUNS, LatencyTable, latency_table
from vitcifar.release.manifest import INT8_FILE, Manifest, served_evaluation

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

PREFIX = "latency/"  # then the machine's fingerprint


def benchmark(
    registry: Registry,
    spec: str | int,
    *,
    dataset: ImageDataset | None = None,
    network: "Classifier | None" = None,
    threads: Sequence[int] = (),
    num_runs: int = NUM_RUNS,
) -> LatencyTable:
    """Measure every format of a version on this machine; the table replaces this machine's earlier one.

    `dataset` gives each format its accuracy; without it the accuracies are those of the release's checks. With the
    version's `network` in memory the PyTorch file is neither downloaded nor measured. Raises VitCifarError.
    """
    release = registry.pull(spec, pytorch=network is None)
    assert release.version is not None
    network = network or open_network(release)
    table = latency_table(release, network=network, dataset=dataset, threads=threads, num_runs=num_runs)
    if dataset is None:
        is_int8 = release.serves == INT8_FILE
        checked, served = release.checks.get("test", {}).get("accuracy"), served_evaluation(release).get("accuracy")
        # The float ONNX file has the network's accuracy: parity requires equal predictions on every test image.
        accuracies = {"torch": checked, "onnx-fp32": checked, "onnx-int8": served if is_int8 else None}
        table = table.with_accuracies(accuracies)
    registry.tag(release.version, f"{PREFIX}{table.machine.fingerprint}", table.to_json())
    return table


def read_tables(version: Version) -> dict[str, LatencyTable]:
    """The tables recorded on a version, by the fingerprint of the machine."""
    tags = version.tags
    return {key.removeprefix(PREFIX): LatencyTable.from_json(tags[key]) for key in tags if key.startswith(PREFIX)}


def recorded_p95(version: Version, release: Manifest) -> float | None:
    """The 95th percentile in ms that this machine recorded for the served file with all cores; None without one."""
    machine = this_machine()
    table = read_tables(version).get(machine.fingerprint)
    row = table.row("onnx-int8" if release.serves == INT8_FILE else "onnx-fp32", machine.num_cores) if table else None
    return row.p95_ms if row else None
