"""Who may become the champion, on each store: every gate with its number, refused, passed or forced, and recorded."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from conftest import COLOURS, make_onnx, make_picture, stored
from test_release_bundle import make_release

from vitcifar.errors import ConfigError, DataError, RegistryError, ReleaseError
from vitcifar.evaluation.scores import evaluate
from vitcifar.release import gates
from vitcifar.release.bundle import read_release, sha256_of, verify
from vitcifar.release.gates import GateError, Policy, check_gates, promote
from vitcifar.release.publish import register
from vitcifar.release.registry import Registry

NUM_PICTURES = 400


def scores(num_right: int, *, seed: int = 0, fingerprint: str = "f" * 64) -> dict[str, Any]:
    """An evaluation of 400 pictures with so many right, which ones is decided by the seed."""
    labels = np.arange(NUM_PICTURES) % 3
    wrong = np.random.default_rng(seed).permutation(NUM_PICTURES)[num_right:]
    answers = labels.copy()
    answers[wrong] = (answers[wrong] + 1) % 3
    logits = np.eye(3)[answers] * 4.0
    return evaluate(logits, labels, COLOURS, fingerprint=fingerprint).to_dict()


def add_version(
    folder: Path,
    name: str,
    test: dict[str, Any],
    *,
    difference: float = 1e-6,
    more: dict[str, Any] | None = None,
    **fields: Any,
) -> int:
    """Register a toy release with these scores, this parity and more proofs."""
    parity = {"max_logit_difference": difference, "num_changed": 0, "num_pictures": NUM_PICTURES, "worst_id": "x"}
    digest = make_release(folder / name, name, proofs={"test": test, "parity": parity, **(more or {})}, **fields)
    client = mlflow.MlflowClient()
    run = client.create_run("0")
    model = client.create_logged_model("0", name="release", source_run_id=run.info.run_id)
    client.log_model_artifacts(model.model_id, str(folder / name))
    release = dataclasses.replace(read_release(folder / name / "release.json"), run_id=run.info.run_id)
    return register(release, model.model_id, digest)


def add_int8_version(folder: Path, name: str, *, served: dict[str, Any]) -> int:
    """A version whose network is good and that serves with an int8 file of its own scores."""
    (folder / name).mkdir()
    make_onnx(folder / name / "model.int8.onnx", release_id=name)
    more = {"served": served} if served else {}
    return add_version(folder, name, scores(392, seed=2), more=more, serves="model.int8.onnx")


@pytest.fixture(scope="module")
def numbers(place: Path) -> dict[str, int]:
    """Versions by what they are."""
    return {
        "good": add_version(place, "good", scores(360)),
        "same": add_version(place, "same", scores(360)),
        "tie": add_version(place, "tie", scores(360, seed=1)),
        "better": add_version(place, "better", scores(392, seed=2)),
        "worse": add_version(place, "worse", scores(300, seed=3)),
        "elsewhere": add_version(place, "elsewhere", scores(392, fingerprint="e" * 64)),
        "unscored": add_version(place, "unscored", {}),
        "off": add_version(place, "off", scores(360), difference=0.5),
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
    with pytest.raises(GateError, match=r"worse: 75\.0% against 90\.0% right on the same 400 pictures") as error:
        promote(toy, numbers["worse"])
    assert failed(error) == ["champion", "calibration"]
    assert str(error.value).endswith(f"Past them: vitcifar promote {numbers['worse']} --force yes --reason WHY.")
    assert "Limits: --require, --margin, --max-ece." in error.value.in_short
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
        with pytest.raises(GateError, match=r"not enough evidence.*it takes about [\d,]+ pictures") as error:
            promote(toy, numbers["tie"], policy=Policy(require=require))
        assert failed(error) == ["champion"]
    promote(toy, numbers["tie"], policy=Policy(require="not-clearly-worse"))
    assert toy.aliases() == {"champion": numbers["tie"]}


def test_the_same_answers_are_not_worse_but_not_better_either(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError, match="not enough evidence"):
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
    with pytest.raises(GateError, match=r"worse: 75\.0% against 90\.0%") as error:
        promote(toy, number)
    assert "champion" in failed(error)
    parity = next(gate for gate in error.value.gates if gate.name == "parity")
    assert "model.int8.onnx, which serves, agrees on 99.50% of the test pictures" in parity.sentence
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
        GateError, match=r"accuracy: 0\.9800 \(.* 400 pictures\), limit 0\.9900, short by 0\.0100"
    ) as error:
        promote(toy, numbers["better"], policy=policy)
    assert failed(error) == ["accuracy", "calibration", "latency"]
    slow = next(gate for gate in error.value.gates if gate.name == "latency")
    assert slow.number is not None and slow.limit is not None and slow.number > slow.limit


def test_the_time_of_an_answer_is_recorded_without_a_budget_too(toy: Registry, numbers: dict[str, int]) -> None:
    latency = next(gate for gate in promote(toy, numbers["better"]).gates if gate.name == "latency")
    assert latency.passed and latency.limit is None
    assert latency.number is not None and latency.number > 0


def test_a_long_reason_and_long_names_fit_into_a_tag(toy: Registry, numbers: dict[str, int], tmp_path: Path) -> None:
    """5,000 characters is what the databases of tracking servers hold."""
    folder = tmp_path / "red"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}-{'n' * 200}.png").write_bytes(make_picture("blue"))
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
    assert {"name", "passed", "sentence", "number", "limit", "asked"} == set(verdict["gates"][0])


def test_a_release_that_is_not_whole_cannot_be_forced(toy: Registry, numbers: dict[str, int], place: Path) -> None:
    path = stored(toy, numbers["better"], place) / "model.onnx"
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
        (tmp_path / colour / "plain.png").write_bytes(make_picture(colour if colour != "green" else (0, 200, 0)))
    promote(toy, numbers["better"], policy=Policy(golden_dir=tmp_path))
    (tmp_path / "red" / "really-blue.png").write_bytes(make_picture("blue"))
    (tmp_path / "red" / "broken.png").write_bytes(b"not a picture")
    gates = check_gates(toy, numbers["better"], "champion", Policy(golden_dir=tmp_path))
    golden = next(gate for gate in gates if gate.name == "golden pictures")
    assert (golden.passed, golden.number, golden.limit) == (False, 2, 0)
    assert "red/really-blue.png (blue)" in golden.sentence
    with pytest.raises(DataError, match="no golden pictures"):
        check_gates(toy, numbers["better"], "champion", Policy(golden_dir=tmp_path / "red"))


@pytest.mark.parametrize("wrong", [{"require": "best"}, {"margin": -0.1}, {"max_ece": float("nan")}])
def test_an_impossible_policy_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Policy(**wrong)


def test_a_release_keeps_its_proofs(tmp_path: Path) -> None:
    digest = make_release(tmp_path / "r", proofs={"test": {"accuracy": 0.5}})
    assert verify(tmp_path / "r", digest=digest).proofs == {"test": {"accuracy": 0.5}}
    assert sha256_of(tmp_path / "r" / "release.json") == digest
    with pytest.raises(ReleaseError):
        verify(tmp_path / "r", digest="0" * 64)
