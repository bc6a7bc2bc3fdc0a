"""The latency table that a benchmark records on a version."""

from pathlib import Path

import pytest
from support.toys import Published

from vitcifar.data.dataset import ImageDataset
from vitcifar.registry.benchmark import benchmark, read_tables, recorded_p95
from vitcifar.registry.registry import Registry
from vitcifar.release.cache import cache_dir
from vitcifar.release.latency import this_machine


def test_a_benchmark_replaces_the_table_of_this_machine(registry: Registry) -> None:
    for threads in ((1,), (2,)):
        table = benchmark(registry, 2, threads=threads, num_runs=2)
        assert [(row.format, row.num_threads) for row in table.rows] == [
            ("torch", *threads),
            ("pt2", *threads),
            ("onnx-fp32", *threads),
        ]
        assert {row.accuracy for row in table.rows if row.format != "pt2"} == {0.1}  # of the release's checks
        assert read_tables(registry.show(2)) == {this_machine().fingerprint: table}


def test_the_formats_of_a_release_have_the_same_accuracy_on_a_dataset(registry: Registry, published: Published) -> None:
    test: ImageDataset = published.splits.test
    rows = benchmark(registry, 2, dataset=test, threads=(1,), num_runs=2).rows
    assert len({row.accuracy for row in rows}) == 1


def test_a_network_in_memory_needs_no_pytorch_file(
    registry: Registry, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path))
    table = benchmark(registry, 1, network=published.networks[1].eval(), num_runs=2)
    assert {row.format for row in table.rows} == {"torch", "onnx-fp32"}
    assert list(cache_dir().rglob("*.onnx")) and not list(cache_dir().rglob("*.pt2"))
    served = table.row("onnx-fp32", this_machine().num_cores)
    assert served and recorded_p95(registry.show(1), registry.pull(1)) == served.p95_ms


def test_without_a_table_of_this_machine_no_latency_is_recorded(registry: Registry) -> None:
    registry.tag(1, f"latency/{this_machine().fingerprint}", "{}")
    registry.tag(1, f"latency/{this_machine().fingerprint}", None)
    assert recorded_p95(registry.show(1), registry.pull(1)) is None
