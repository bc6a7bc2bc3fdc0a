"""The latency table that a benchmark records on a version."""

import re
from pathlib import Path

import pytest
import torch
from support.toys import Published

from vitcifar.cache import cache_dir
from vitcifar.data.dataset import ImageDataset
from vitcifar.registry.benchmark import benchmark, read_old_tables, read_tables
from vitcifar.registry.registry import Registry
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
    assert read_tables(registry.show(1)) == {this_machine().fingerprint: table}


def test_a_benchmark_leaves_the_number_of_threads_as_it_was(registry: Registry) -> None:
    before = torch.get_num_threads()
    benchmark(registry, 2, threads=(before + 1,), num_runs=1)
    assert torch.get_num_threads() == before


def test_a_latency_table_that_was_edited_is_not_shown(registry: Registry) -> None:
    """The table is a file of the run; the tag holds its sha256 and no number."""
    machine = this_machine().fingerprint
    table = benchmark(registry, 2, threads=(1,), num_runs=2)
    version, tag = registry.show(2), f"latency_sha256/{machine}"
    assert re.fullmatch("[0-9a-f]{64}", version.tags[tag])
    faster = table.to_json().replace('"p95_ms": ', '"p95_ms": 0.0')
    registry.client.log_text(version.run_id, faster, f"latency/{machine}.json")
    command = "vitcifar benchmark --version 2 --model-name toy"
    with pytest.warns(UserWarning, match=f"latency table of toy 2 is missing or was changed: type {command}"):
        assert read_tables(version) == {}
    registry.tag(2, tag, None)


def test_a_table_in_a_tag_is_replaced_by_the_next_benchmark(registry: Registry) -> None:
    machine = this_machine().fingerprint
    registry.tag(2, f"latency/{machine}", benchmark(registry, 2, threads=(1,), num_runs=1).to_json())
    registry.tag(2, "latency/edited", "{}")
    assert read_old_tables(registry.show(2)).keys() == {machine}
    benchmark(registry, 2, threads=(1,), num_runs=1)
    assert read_old_tables(registry.show(2)) == {}
    registry.tag(2, "latency/edited", None)
