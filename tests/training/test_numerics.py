"""The threads and switches of torch that decide the last bits of a training."""

import json

import torch

from vitcifar.training.numerics import SWITCHES, numerics, recorded_switches


def test_threads_switches_and_the_machine_are_recorded_as_json(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    now = numerics()
    assert json.loads(json.dumps(now)) == now
    assert now["num_threads"] == torch.get_num_threads() and now["MKL_CBWR"] == "COMPATIBLE"
    assert now.keys() >= {*SWITCHES, "num_interop_threads", "instructions", "processor", "flags"}


def test_recorded_switches_are_set_and_restored():
    before = numerics()
    other = {
        "num_threads": before["num_threads"] + 1,
        "deterministic_algorithms": not before["deterministic_algorithms"],
        "float32_matmul_precision": "high",
        "cudnn_deterministic": not before["cudnn_deterministic"],
    }
    with recorded_switches({**before, **other}) as changed:
        assert changed == other
        assert numerics() == {**before, **other}
    assert numerics() == before


def test_a_release_without_a_record_changes_nothing():
    before = numerics()
    with recorded_switches({}) as changed:
        assert changed == {} and numerics() == before
