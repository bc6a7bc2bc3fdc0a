"""Who may become the champion, on each store: every gate with its number, refused, passed or forced, and recorded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.releases import make_release
from support.scores import add_version, scores
from support.toys import COLOURS, make_image, make_onnx, stored

from vitcifar.errors import ConfigError, DataError, GateError, RegistryError, ReleaseError
from vitcifar.registry import gates
from vitcifar.registry.gates import Policy, check_gates, promote
from vitcifar.registry.registry import Registry
from vitcifar.release.manifest import sha256_of, verify


def add_int8_version(folder: Path, name: str, *, served: dict[str, Any]) -> int:
    """A version whose network is good and that serves with an int8 file of its own scores."""
    (folder / name).mkdir()
    make_onnx(folder / name / "model.int8.onnx", release_id=name)
    more = {"served": served} if served else {}
    return add_version(folder, name, scores(392, seed=2), more=more, serves="model.int8.onnx")


@pytest.fixture(scope="module")
def numbers(workspace: Path) -> dict[str, int]:
    """Versions by what they are."""
    return {
        "good": add_version(workspace, "good", scores(360)),
        "same": add_version(workspace, "same", scores(360)),
        "tie": add_version(workspace, "tie", scores(360, seed=1)),
        "better": add_version(workspace, "better", scores(392, seed=2)),
        "worse": add_version(workspace, "worse", scores(300, seed=3)),
        "elsewhere": add_version(workspace, "elsewhere", scores(392, fingerprint="e" * 64)),
        "unscored": add_version(workspace, "unscored", {}),
        "off": add_version(workspace, "off", scores(360), difference=0.5),
    }


@pytest.fixture
def toy(numbers: dict[str, int]) -> Iterator[Registry]:
    registry = Registry("toy")
    registry.promote(numbers["good"])
    yield registry
    for key in registry.client.get_registered_model("toy").tags:
        registry.client.delete_registered_model_tag("toy", key)
    registry.client.delete_registered_model_alias("toy", "champion")


def failed(error: pytest.ExceptionInfo[GateError]) -> list[str]:
    return [gate.name for gate in error.value.gates if not gate.passed]


def test_a_worse_version_is_refused_with_its_numbers(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError, match=r"worse: accuracy 75\.0% against 90\.0% on the same 400 images") as error:
        promote(toy, numbers["worse"])
    assert failed(error) == ["champion", "calibration"]
    assert str(error.value).endswith(f"Past them: vitcifar promote {numbers['worse']} --force yes --reason WHY.")
    assert "Limits: --require, --margin, --max-ece." in error.value.summary
    assert toy.aliases() == {"champion": numbers["good"]}
    assert len(toy.history()) == 1


@pytest.mark.parametrize("require", ["better", "not-worse", "not-clearly-worse"])
def test_a_better_version_is_promoted_whatever_is_asked(toy: Registry, numbers: dict[str, int], require: Any) -> None:
    promotion = promote(toy, numbers["better"], policy=Policy(require=require), reason="trained longer")
    assert toy.aliases() == {"champion": numbers["better"]}
    assert all(gate.passed for gate in promotion.gates)
    event = toy.history()[-1]
    assert (event.after, event.reason, event.forced) == (numbers["better"], "trained longer", False)
    assert [gate["name"] for gate in event.gates] == [gate.name for gate in promotion.gates]


def test_a_tie_is_not_enough_evidence_and_says_how_many_pictures_it_takes(
    toy: Registry, numbers: dict[str, int]
) -> None:
    for require in ("better", "not-worse"):
        with pytest.raises(GateError, match=r"inconclusive.*needs about [\d,]+ images") as error:
            promote(toy, numbers["tie"], policy=Policy(require=require))
        assert failed(error) == ["champion"]
    promote(toy, numbers["tie"], policy=Policy(require="not-clearly-worse"))
    assert toy.aliases() == {"champion": numbers["tie"]}


def test_the_same_answers_are_not_worse_but_not_better_either(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError, match="inconclusive"):
        promote(toy, numbers["same"], policy=Policy(require="better"))
    promote(toy, numbers["same"])


def test_scores_of_other_pictures_cannot_be_compared(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError, match="cannot be compared with 1") as error:
        promote(toy, numbers["elsewhere"])
    assert failed(error) == ["champion"]
    promote(toy, numbers["elsewhere"], policy=Policy(require="none"))


def test_the_first_holder_of_an_alias_has_nobody_to_beat(toy: Registry, numbers: dict[str, int]) -> None:
    promote(toy, numbers["tie"], "challenger")
    assert toy.aliases()["challenger"] == numbers["tie"]
    toy.client.delete_registered_model_alias("toy", "challenger")


def test_a_version_without_scores_or_parity_fails_closed(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError) as error:
        promote(toy, numbers["unscored"])
    assert failed(error) == ["accuracy", "champion", "calibration"]
    with pytest.raises(GateError, match=r"parity: 0 of 400 answers changed by the export, logits by up to 0\.5"):
        promote(toy, numbers["off"])


def served(right: int, agreement: float = 0.995) -> dict[str, Any]:
    """What is recorded of an int8 file that serves."""
    return {"file": "model.int8.onnx", "evaluation": scores(right, seed=5), "agreement": agreement}


def test_the_gates_judge_the_file_that_serves(toy: Registry, tmp_path: Path) -> None:
    """The network is right in 392 of 400, its int8 file in 300: it is the int8 file that would answer."""
    number = add_int8_version(tmp_path, "int8-worse", served=served(300))
    with pytest.raises(GateError, match=r"worse: accuracy 75\.0% against 90\.0%") as error:
        promote(toy, number)
    assert "champion" in failed(error)
    parity = next(gate for gate in error.value.gates if gate.name == "parity")
    assert "model.int8.onnx, which serves, agrees on 99.50% of the test images" in parity.message
    assert toy.show(number).test_accuracy == 0.75


def test_an_int8_file_without_scores_of_its_own_fails_closed(toy: Registry, tmp_path: Path) -> None:
    number = add_int8_version(tmp_path, "int8-unscored", served={})
    with pytest.raises(GateError) as error:
        promote(toy, number)
    assert failed(error) == ["accuracy", "champion", "calibration"]


def test_nobody_else_moves_the_alias_while_the_gates_run(
    toy: Registry, numbers: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gates.check_gates

    def slow(registry: Registry, *more: Any) -> Any:
        found = real(registry, *more)
        registry.promote(numbers["same"], reason="meanwhile")
        return found

    monkeypatch.setattr(gates, "check_gates", slow)
    with pytest.raises(RegistryError, match="by somebody else meanwhile"):
        promote(toy, numbers["better"])
    assert toy.aliases() == {"champion": numbers["same"]}


def test_limits_are_said_with_how_much_is_missing(toy: Registry, numbers: dict[str, int]) -> None:
    policy = Policy(min_accuracy=0.99, max_ece=0.001, max_p95_ms=0.000001)
    with pytest.raises(
        GateError, match=r"accuracy: 0\.9800 \(.* 400 images\), limit 0\.9900, short by 0\.0100"
    ) as error:
        promote(toy, numbers["better"], policy=policy)
    assert failed(error) == ["accuracy", "calibration", "latency"]
    slow = next(gate for gate in error.value.gates if gate.name == "latency")
    assert slow.value is not None and slow.limit is not None and slow.value > slow.limit


def test_the_time_of_an_answer_is_recorded_without_a_budget_too(toy: Registry, numbers: dict[str, int]) -> None:
    latency = next(gate for gate in promote(toy, numbers["better"]).gates if gate.name == "latency")
    assert latency.passed and latency.limit is None
    assert latency.value is not None and latency.value > 0


def test_a_long_reason_and_long_names_fit_into_a_tag(toy: Registry, numbers: dict[str, int], tmp_path: Path) -> None:
    """5,000 characters is what the databases of tracking servers hold."""
    folder = tmp_path / "red"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}-{'n' * 200}.png").write_bytes(make_image("blue"))
    promote(toy, numbers["worse"], policy=Policy(golden_dir=tmp_path), force=True, reason="Ж" * 5000)
    tags = toy.client.get_registered_model("toy").tags | dict(toy.show(numbers["worse"]).tags)
    assert max(len(value) for value in tags.values()) < 5000
    assert toy.history()[-1].reason.startswith("ЖЖ")


def test_a_failed_gate_can_be_forced_with_a_reason_and_is_recorded(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="needs a reason"):
        promote(toy, numbers["worse"], force=True)
    promote(toy, numbers["worse"], force=True, reason="the other one leaks")
    event = toy.history()[-1]
    assert (event.forced, event.reason, event.after) == (True, "the other one leaks", numbers["worse"])
    assert [gate["name"] for gate in event.gates if not gate["passed"]] == ["champion", "calibration"]


def test_forcing_what_passes_anyway_is_not_called_forced(toy: Registry, numbers: dict[str, int]) -> None:
    assert not promote(toy, numbers["better"], force=True, reason="sure").event.forced


def test_every_verdict_is_recorded_on_the_version(toy: Registry, numbers: dict[str, int]) -> None:
    before = {key for key in toy.show(numbers["worse"]).tags if key.startswith("gates/champion/")}
    with pytest.raises(GateError):
        promote(toy, numbers["worse"])
    tags = toy.show(numbers["worse"]).tags
    (key,) = {key for key in tags if key.startswith("gates/champion/")} - before
    verdict = json.loads(tags[key])
    assert (verdict["passed"], verdict["forced"]) == (False, False)
    assert {"name", "passed", "message", "value", "limit", "required"} == set(verdict["gates"][0])


def test_a_release_that_is_not_whole_cannot_be_forced(toy: Registry, numbers: dict[str, int], workspace: Path) -> None:
    path = stored(toy, numbers["better"], workspace) / "model.onnx"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1])
        with pytest.raises(GateError, match="cannot be forced") as error:
            promote(toy, numbers["better"], force=True, reason="please")
        assert failed(error) == ["files"]
        assert toy.aliases() == {"champion": numbers["good"]}
    finally:
        path.write_bytes(whole)


def test_golden_pictures_must_be_right(toy: Registry, numbers: dict[str, int], tmp_path: Path) -> None:
    for colour in COLOURS:
        (tmp_path / colour).mkdir()
        (tmp_path / colour / "plain.png").write_bytes(make_image(colour if colour != "green" else (0, 200, 0)))
    promote(toy, numbers["better"], policy=Policy(golden_dir=tmp_path))
    (tmp_path / "red" / "really-blue.png").write_bytes(make_image("blue"))
    (tmp_path / "red" / "broken.png").write_bytes(b"not an image")
    gates = check_gates(toy, numbers["better"], "champion", Policy(golden_dir=tmp_path))
    golden = next(gate for gate in gates if gate.name == "golden images")
    assert (golden.passed, golden.value, golden.limit) == (False, 2, 0)
    assert "red/really-blue.png (blue)" in golden.message
    with pytest.raises(DataError, match="no golden images"):
        check_gates(toy, numbers["better"], "champion", Policy(golden_dir=tmp_path / "red"))


@pytest.mark.parametrize("wrong", [{"require": "best"}, {"margin": -0.1}, {"max_ece": float("nan")}])
def test_an_impossible_policy_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Policy(**wrong)


def test_a_release_keeps_its_proofs(tmp_path: Path) -> None:
    digest = make_release(tmp_path / "r", checks={"test": {"accuracy": 0.5}})
    assert verify(tmp_path / "r", digest=digest).checks == {"test": {"accuracy": 0.5}}
    assert sha256_of(tmp_path / "r" / "release.json") == digest
    with pytest.raises(ReleaseError):
        verify(tmp_path / "r", digest="0" * 64)
