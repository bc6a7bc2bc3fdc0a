"""The latency table of a version: measured here, kept on the version, compared with what an equal machine measured."""

import dataclasses
from collections.abc import Sequence

from vitcifar.data.pictures import Pictures
from vitcifar.release.latency import NUM_RUNS, Change, LatencyTable, compare_tables, latency_table
from vitcifar.release.registry import Registry
from vitcifar.release.weights import open_network

PREFIX = "latency/"  # then the machine's fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The table, and how it changed since an equal machine measured this version."""

    version: int
    table: LatencyTable
    changes: tuple[Change, ...]


def benchmark(
    registry: Registry,
    spec: str | int,
    *,
    pictures: Pictures | None = None,
    threads: Sequence[int] = (),
    num_runs: int = NUM_RUNS,
) -> Benchmark:
    """Measure every form of a version, with `pictures` its accuracy too, and keep the table on the version."""
    release = registry.pull(spec, pytorch=True)
    assert release.version is not None
    earlier = recorded_tables(registry, release.version)
    table = latency_table(release, network=open_network(release), pictures=pictures, threads=threads, num_runs=num_runs)
    before = earlier.get(table.machine.fingerprint)
    registry.tag(release.version, f"{PREFIX}{table.machine.fingerprint}", table.to_json())
    changes = compare_tables(before, table) if before else []
    return Benchmark(version=release.version, table=table, changes=tuple(changes))


def recorded_tables(registry: Registry, spec: str | int) -> dict[str, LatencyTable]:
    """The tables kept on a version by the fingerprint of the machine."""
    tags = registry.show(spec).tags
    return {key.removeprefix(PREFIX): LatencyTable.from_json(tags[key]) for key in tags if key.startswith(PREFIX)}
