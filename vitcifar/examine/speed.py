"""How fast a registered version answers on this machine, kept on the version: one table for each kind of machine."""

from collections.abc import Sequence

from vitcifar.config import TrainConfig
from vitcifar.data.pictures import Pictures
from vitcifar.data.splits import read_splits
from vitcifar.errors import DataError
from vitcifar.examine.versions import open_network
from vitcifar.release.bundle import Release
from vitcifar.release.latency import Change, LatencyTable, compare_tables, latency_table
from vitcifar.release.registry import Registry

TAG = "latency/"


def benchmark_version(
    registry: Registry, spec: str, *, threads: Sequence[int] = (), num_runs: int = 30
) -> tuple[LatencyTable, list[Change]]:
    """Measure every form of a version, and compare with what an equal machine measured before.

    The accuracies are those on the version's test pictures, when these can be read here.
    """
    release = registry.pull(spec, pytorch=True)
    assert release.version is not None
    network = open_network(registry, release)
    table = latency_table(release, network=network, pictures=test_pictures(release), threads=threads, num_runs=num_runs)
    key = f"{TAG}{table.machine.fingerprint}"
    before = registry.show(release.version).tags.get(key)
    changes = compare_tables(LatencyTable.from_json(before), table) if before else []
    registry.tag(release.version, key, table.to_json())
    return table, changes


def test_pictures(release: Release) -> Pictures | None:
    """The pictures that a version was tested on; None when they are not here, or not the same any more."""
    try:
        splits = read_splits(TrainConfig(**release.config))
    except DataError:
        return None
    return splits.test if splits.fingerprint == release.fingerprint else None
