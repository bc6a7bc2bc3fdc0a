"""The policy of a promotion, and a gate's result."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vitcifar.errors import ConfigError
from vitcifar.registry.policy import Gate, Policy


@pytest.mark.parametrize(
    "wrong", [{"require": "best"}, {"margin": -0.1}, {"max_ece": float("nan")}, {"min_accuracy": 2.0}]
)
def test_an_invalid_policy_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Policy(**wrong)


def test_every_limit_has_what_an_option_needs() -> None:
    for field in dataclasses.fields(Policy):
        assert set(field.metadata) >= {"help", "choices", "minimum", "maximum"}
        assert isinstance(field.default, field.type)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("passed", "required", "state"),
    [(True, True, "passed"), (True, False, "not required"), (False, True, "FAILED"), (False, False, "FAILED")],
)
def test_the_state_of_a_gate(passed: bool, required: bool, state: str) -> None:
    assert Gate(name="latency", passed=passed, required=required, message="").state == state


def test_a_gate_recorded_by_vitcifar_0_1_is_read() -> None:
    old = {"name": "parity", "passed": True, "sentence": "0 of 400", "number": 0.5, "limit": 1.0, "asked": False}
    gate = Gate(name="parity", passed=True, message="0 of 400", value=0.5, limit=1.0, required=False)
    assert Gate.from_dict(old) == Gate.from_dict(gate.to_dict()) == gate


def test_a_folder_of_golden_images_may_be_named_from_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    required = Policy(golden_dir=str(tmp_path / "golden"))
    assert Policy(golden_dir="golden").looser_than(required) == ()
    assert Policy(golden_dir="other").looser_than(required) == Policy().looser_than(required) == ("golden_dir",)
