"""The latency table of a version: measured here, kept on the version, compared with what an equal machine measured."""

import dataclasses
from collections.abc import Sequence

from vitcifar.data.dataset import ImageDataset
from vitcifar.registry.registry import Registry, Version
from vitcifar.release.latency import NUM_RUNS, LatencyTable, latency_table
from vitcifar.release.load import open_network
from vitcifar.release.manifest import INT8_FILE, Manifest, served_evaluation

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
    threads: Sequence[int] = (),
    num_runs: int = NUM_RUNS,
) -> Benchmark:
    """Measure every format of a version on this machine; the table replaces this machine's earlier one.

    `dataset` gives each format its accuracy; without them it is what the checks of the release say.
    """
    release = registry.pull(spec, pytorch=True)
    assert release.version is not None
    network = open_network(release)
    table = latency_table(release, network=network, dataset=dataset, threads=threads, num_runs=num_runs)
    if dataset is None:
        table = table.with_accuracies(proven_accuracies(release))
    registry.tag(release.version, f"{PREFIX}{table.machine.fingerprint}", table.to_json())
    return Benchmark(version=release.version, table=table)


def proven_accuracies(release: Manifest) -> dict[str, float]:
    """The accuracy of a release's formats on its test images, as far as its checks say it.

    The float ONNX file answers every one of them as the network does: it was not let in otherwise.
    """
    network, served = release.checks.get("test", {}).get("accuracy"), served_evaluation(release).get("accuracy")
    found = {"torch": network, "onnx-fp32": network, "onnx-int8": served if release.serves == INT8_FILE else None}
    return {format: accuracy for format, accuracy in found.items() if accuracy is not None}


def recorded_tables(registry: Registry, spec: str | int) -> dict[str, LatencyTable]:
    """The tables kept on a version by the fingerprint of the machine."""
    return read_tables(registry.show(spec))


def read_tables(version: Version) -> dict[str, LatencyTable]:
    """The tables among a version's tags by the fingerprint of the machine."""
    tags = version.tags
    return {key.removeprefix(PREFIX): LatencyTable.from_json(tags[key]) for key in tags if key.startswith(PREFIX)}
