"""Latency tables: every format is measured, in turns; tables survive JSON, those of vitcifar 0.1 too."""

import dataclasses
import json
import re
from typing import Any

import pytest

from vitcifar.inference.machine import this_machine
from vitcifar.registry.benchmark import benchmark, read_tables
from vitcifar.registry.card import model_card
from vitcifar.release.latency import LatencyTable, Row, latency_table, time_in_turns

ROW = Row(
    format="onnx-int8",
    num_threads=2,
    file_bytes=22_500_000,
    accuracy=0.968,
    cold_ms=41.26,
    p50_ms=1.234,
    p95_ms=2.5,
    p99_ms=10.0,
)
TABLE = LatencyTable(machine=this_machine(), image_size=32, num_runs=30, rows=(ROW,))


def test_every_format_of_a_release_is_measured(registry: Any, published: Any) -> None:
    network = published.networks[1].train()
    release = registry.pull(1, pytorch=True)
    table = latency_table(release, network=network, dataset=published.splits.test, threads=(1,), num_runs=3)
    assert network.training  # the mode is restored
    network.eval()
    assert [row.format for row in table.rows] == ["torch", "pt2", "onnx-fp32"]
    for row in table.rows:
        assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms
        assert row.cold_ms > 0
        assert row.accuracy == table.rows[0].accuracy
    assert {row.format: row.file_bytes > 0 for row in table.rows} == {"torch": False, "pt2": True, "onnx-fp32": True}
    assert [row.format for row in latency_table(release, num_runs=1, threads=(1,)).rows] == ["pt2", "onnx-fp32"]


def test_the_latency_table_of_this_machine_is_recorded_on_the_version(registry: Any, published: Any) -> None:
    benchmark(registry, 2, threads=(1,), num_runs=3)
    second = benchmark(registry, 2, threads=(2,), num_runs=3)
    assert read_tables(registry.show(2)) == {this_machine().fingerprint: second}
    card = model_card(registry.show(2), registry.pull(2))
    assert "## Latency, one image at a time" in card
    assert f"| onnx-fp32 | 2 | {second.rows[-1].file_bytes / 1e6:.1f} |" in card


def test_a_table_survives_json_and_machines_have_fingerprints() -> None:
    elsewhere = dataclasses.replace(TABLE, machine=dataclasses.replace(TABLE.machine, num_cores=99))
    assert LatencyTable.from_json(elsewhere.to_json()) == elsewhere
    assert json.loads(elsewhere.to_json())["fingerprint"] != TABLE.machine.fingerprint


@pytest.mark.parametrize(("then", "now"), [("onnx", "onnx-fp32"), ("int8", "onnx-int8"), ("pt2", "pt2")])
def test_a_table_of_vitcifar_0_1_is_read(then: str, now: str) -> None:
    fields = json.loads(TABLE.to_json())
    fields["rows"][0]["form"] = then
    del fields["rows"][0]["format"]
    table = LatencyTable.from_json(json.dumps(fields))
    assert table.row(now, 2) == dataclasses.replace(ROW, format=now)
    assert table.row(now, 1) is None


def test_a_table_is_written_with_its_units() -> None:
    unknown = dataclasses.replace(ROW, format="torch", file_bytes=0, accuracy=None)
    header, row, second = dataclasses.replace(TABLE, rows=(ROW, unknown)).rows_as_text()
    assert header == ["format", "threads", "size MB", "accuracy", "cold ms", "p50 ms", "p95 ms", "p99 ms"]
    assert row == ["onnx-int8", "2", "22.5", "96.8%", "41.3", "1.23", "2.50", "10.00"]
    assert second[2:4] == ["-", "-"]


def test_calls_take_turns_and_each_turn_starts_with_an_untimed_call() -> None:
    called: list[str] = []
    times = time_in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, num_runs=7)
    assert {name: values.shape for name, values in times.items()} == {"a": (7,), "b": (7,)}
    turns = re.findall("a+|b+", "".join(called))
    assert len(turns) == 4 and [turn[0] for turn in turns] == ["a", "b", "a", "b"]
    assert called.count("a") == called.count("b") == 7 + 2
