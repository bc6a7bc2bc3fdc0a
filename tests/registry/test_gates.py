"""The gates of a promotion, on each kind of store: passed, rejected or overridden, with values, and recorded."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.scores import add_version, scores
from support.toys import COLOURS, make_image, make_onnx, stored

from vitcifar.errors import ConfigError, DataError, GateError, RegistryError
from vitcifar.registry import gates
from vitcifar.registry.aliases import move_alias
from vitcifar.registry.gates import Policy, check_gates
from vitcifar.registry.registry import Registry
from vitcifar.release import artifacts, manifest
from vitcifar.release.latency import LatencyTable, Row, this_machine
from vitcifar.release.manifest import sha256_of

# What the gates decide does not depend on the kind of store; test_registry.py reads and moves on both.
pytestmark = pytest.mark.parametrize("workspace", ["sqlite"], indirect=True, scope="module")


def add_int8_version(folder: Path, name: str, *, served: dict[str, Any]) -> int:
    """A version whose network is good and that serves with an int8 file of its own scores."""
    (folder / name).mkdir()
    make_onnx(folder / name / "model.int8.onnx", release_id=name)
    more = {"served": served} if served else {}
    return add_version(folder, name, scores(392, seed=2), more=more, serves="model.int8.onnx")


@pytest.fixture(scope="module")
def numbers(workspace: Path) -> dict[str, int]:
    """The number of each version."""
    return {
        "good": add_version(workspace, "good", scores(360)),
        "same": add_version(workspace, "same", scores(360)),
        "tie": add_version(workspace, "tie", scores(360, seed=1)),
        "better": add_version(workspace, "better", scores(392, seed=2)),
        "worse": add_version(workspace, "worse", scores(300, seed=3)),
        "lower": add_version(workspace, "lower", scores(351, seed=4)),
        "chance": add_version(workspace, "chance", scores(150, seed=5)),
        "elsewhere": add_version(workspace, "elsewhere", scores(392, fingerprint="e" * 64)),
        "unscored": add_version(workspace, "unscored", {}),
        "off": add_version(workspace, "off", scores(360), difference=0.5),
    }


@pytest.fixture
def toy(numbers: dict[str, int]) -> Iterator[Registry]:
    registry = Registry("toy")
    move_alias(registry, "champion", numbers["good"])
    yield registry
    for key in registry.client.get_registered_model("toy").tags:
        registry.client.delete_registered_model_tag("toy", key)
    registry.client.delete_registered_model_alias("toy", "champion")


def failed(error: pytest.ExceptionInfo[GateError]) -> list[str]:
    return [gate.name for gate in error.value.gates if not gate.passed]


def test_a_worse_version_is_rejected_with_its_numbers(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError, match=r"worse: .*75\.0% against 90\.0%.* on the same 400 images") as error:
        toy.promote(numbers["worse"])
    assert failed(error) == ["champion", "calibration"]
    command = f"vitcifar promote {numbers['worse']} --alias champion --model-name toy --force yes --reason WHY"
    assert str(error.value).endswith(f"To override: {command}.")
    assert toy.aliases() == {"champion": numbers["good"]}
    assert len(toy.history()) == 1


@pytest.mark.parametrize("require", ["better", "not-worse", "not-clearly-worse"])
def test_a_better_version_passes_every_requirement(toy: Registry, numbers: dict[str, int], require: Any) -> None:
    promotion = toy.promote(numbers["better"], require=require, reason="trained longer")
    assert toy.aliases() == {"champion": numbers["better"]}
    assert all(gate.passed for gate in promotion.gates)
    event = toy.history()[-1]
    assert (event.after, event.reason, event.forced) == (numbers["better"], "trained longer", False)
    assert [gate["name"] for gate in event.gates] == [gate.name for gate in promotion.gates]


def test_a_tie_is_inconclusive_and_says_how_many_images_are_needed(toy: Registry, numbers: dict[str, int]) -> None:
    for require in ("better", "not-worse"):
        with pytest.raises(GateError, match=r"inconclusive.*about [\d,]+ images") as error:
            toy.promote(numbers["tie"], require=require)
        assert failed(error) == ["champion"]
    gate = next(gate for gate in toy.promote(numbers["tie"]).gates if gate.name == "champion")
    assert "the same 400 images" in gate.message
    assert "the observed accuracy is not lower by more than 2 points" in gate.message
    assert toy.aliases() == {"champion": numbers["tie"]}


def test_equal_predictions_are_not_worse_and_not_better(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError, match="inconclusive"):
        toy.promote(numbers["same"], require="better")
    toy.promote(numbers["same"], require="not-worse")


def test_an_observed_loss_beyond_the_margin_is_rejected_though_it_is_inconclusive(
    toy: Registry, numbers: dict[str, int]
) -> None:
    """351 of 400 against 360: 2.25 points lower, which 400 images cannot show to be worse."""
    with pytest.raises(GateError, match=r"inconclusive.*observed accuracy is lower by more than 2 points") as error:
        toy.promote(numbers["lower"])
    assert failed(error) == ["champion"]
    with pytest.raises(GateError, match=r"looser than the policy \(margin 0\.03, the policy is 0\.02\)"):
        toy.promote(numbers["lower"], margin=0.03)
    assert not toy.promote(numbers["lower"], "challenger", margin=0.01).event.forced  # nothing to compare it with
    toy.client.delete_registered_model_alias("toy", "challenger")


def test_a_model_at_chance_is_rejected(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError, match=r"not clearly above chance: always the largest class is 0\.3350") as error:
        toy.promote(numbers["chance"], "challenger")
    assert failed(error) == ["accuracy", "calibration"]


def test_a_limit_looser_than_the_policy_counts_as_overridden(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError, match=r"looser than the policy \(require none, the policy is not-clearly-worse\)"):
        toy.promote(numbers["worse"], require="none", max_ece=0.15)
    assert toy.aliases() == {"champion": numbers["good"]}
    event = toy.promote(numbers["tie"], require="none", force=True, reason="the hour").event
    champion = next(gate for gate in event.gates if gate["name"] == "champion")
    assert event.forced and champion["required"] and not champion["passed"]  # so the history does not say 4/4


def test_scores_on_other_images_cannot_be_compared(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError, match="cannot be compared with version 1") as error:
        toy.promote(numbers["elsewhere"])
    assert failed(error) == ["champion"]
    assert toy.promote(numbers["elsewhere"], force=True, reason="new test images").event.forced


def test_the_first_version_of_an_alias_needs_no_comparison(toy: Registry, numbers: dict[str, int]) -> None:
    toy.promote(numbers["tie"], "challenger")
    assert toy.aliases()["challenger"] == numbers["tie"]
    toy.client.delete_registered_model_alias("toy", "challenger")


def test_a_version_without_scores_or_parity_fails_closed(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(GateError) as error:
        toy.promote(numbers["unscored"])
    assert failed(error) == ["accuracy", "champion", "calibration"]
    with pytest.raises(
        GateError, match=r"parity: 0 of 400 predictions changed by the export, largest logit difference 0\.5"
    ):
        toy.promote(numbers["off"])


def served(right: int, **more: Any) -> dict[str, Any]:
    """What is recorded of an int8 file that serves."""
    return {
        "file": "model.int8.onnx",
        "weight_bits": 7,
        "evaluation": scores(right, seed=5),
        "agreement": 0.995,
        **more,
    }


def test_the_gates_check_the_served_file(toy: Registry, tmp_path: Path) -> None:
    """The network is right in 392 of 400, its int8 file in 300: it is the int8 file that would answer."""
    number = add_int8_version(tmp_path, "int8-worse", served=served(300))
    with pytest.raises(GateError, match=r"worse: .*75\.0% against 90\.0%") as error:
        toy.promote(number)
    assert "champion" in failed(error)
    parity = next(gate for gate in error.value.gates if gate.name == "parity")
    assert "the served model.int8.onnx agrees on 99.50% of the test images" in parity.message
    assert toy.accuracy(toy.show(number)) == 0.75


def test_an_int8_file_that_changes_a_prediction_on_an_edge_case_file_fails_parity(
    toy: Registry, tmp_path: Path
) -> None:
    changed = served(392, num_edge_cases=18, num_edge_cases_changed=1)
    number = add_int8_version(tmp_path, "int8-edge", served=changed)
    with pytest.raises(GateError, match="changes 1 of 18 predictions on edge-case files") as error:
        toy.promote(number)
    assert failed(error) == ["parity"]


def test_an_int8_file_without_scores_of_its_own_fails_closed(toy: Registry, tmp_path: Path) -> None:
    number = add_int8_version(tmp_path, "int8-unscored", served={"weight_bits": 7})
    with pytest.raises(GateError) as error:
        toy.promote(number)
    assert failed(error) == ["accuracy", "champion", "calibration"]


def test_an_alias_moved_while_the_gates_run_is_not_moved_again(
    toy: Registry, numbers: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gates.check_gates

    def slow(registry: Registry, *more: Any) -> Any:
        found = real(registry, *more)
        move_alias(registry, "champion", numbers["same"], reason="concurrent")
        return found

    monkeypatch.setattr(gates, "check_gates", slow)
    with pytest.raises(RegistryError, match="was moved concurrently"):
        toy.promote(numbers["better"])
    assert toy.aliases() == {"champion": numbers["same"]}


def test_failed_limits_say_how_much_is_missing(toy: Registry, numbers: dict[str, int]) -> None:
    limits = {"min_accuracy": 0.99, "max_ece": 0.001, "max_p95_ms": 0.000001}
    with pytest.raises(
        GateError, match=r"accuracy: 0\.9800 \(.* 400 images\), minimum 0\.9900, 0\.0100 too low"
    ) as error:
        toy.promote(numbers["better"], **limits)
    assert failed(error) == ["accuracy", "calibration", "latency"]
    slow = next(gate for gate in error.value.gates if gate.name == "latency")
    assert slow.value is not None and slow.limit is not None and slow.value > slow.limit


def test_latency_is_recorded_without_a_limit_too(toy: Registry, numbers: dict[str, int]) -> None:
    latency = next(gate for gate in toy.promote(numbers["better"]).gates if gate.name == "latency")
    assert latency.passed and latency.limit is None
    assert latency.value is not None and latency.value > 0
    assert f"measured on this machine ({this_machine().fingerprint}), no maximum set" in latency.message


def test_the_latency_gate_measures_and_believes_no_tag(toy: Registry, numbers: dict[str, int]) -> None:
    machine = this_machine()
    times = {"cold_ms": 2e6, "p50_ms": 1e6, "p95_ms": 1e6, "p99_ms": 1e6}
    row = Row(format="onnx-fp32", num_threads=machine.num_cores, file_bytes=1, accuracy=None, **times)
    table = LatencyTable(machine=machine, image_size=32, num_runs=1, rows=(row,))
    toy.tag(numbers["tie"], f"latency/{machine.fingerprint}", table.to_json())
    gates = check_gates(toy, toy.show(numbers["tie"]), "champion", None, Policy(max_p95_ms=1e5))
    latency = next(gate for gate in gates if gate.name == "latency")
    assert latency.passed and latency.value is not None and latency.value < 1e5
    toy.tag(numbers["tie"], f"latency/{machine.fingerprint}", None)


def test_a_promotion_hashes_every_file_at_most_twice(
    toy: Registry, numbers: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in the store and once in the cache."""
    toy.pull(numbers["better"])
    hashed: Counter[str] = Counter()

    def count(path: Path) -> str:
        hashed[path.name] += 1
        return sha256_of(path)

    for module in (artifacts, manifest):
        monkeypatch.setattr(module, "sha256_of", count)
    toy.promote(numbers["better"], "challenger")
    toy.client.delete_registered_model_alias("toy", "challenger")
    assert hashed == {"model.onnx": 2, "MLmodel": 2, "release.json": 2, "model.pt2": 1}


def test_a_long_reason_and_long_names_fit_into_a_tag(toy: Registry, numbers: dict[str, int], tmp_path: Path) -> None:
    """5,000 characters is what the databases of tracking servers hold."""
    folder = tmp_path / "red"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}-{'n' * 200}.png").write_bytes(make_image("blue"))
    toy.promote(numbers["worse"], golden_dir=str(tmp_path), force=True, reason="Ж" * 5000)
    tags = toy.client.get_registered_model("toy").tags | dict(toy.show(numbers["worse"]).tags)
    assert max(len(value) for value in tags.values()) < 5000
    assert toy.history()[-1].reason.startswith("ЖЖ")


def test_a_failed_gate_can_be_forced_with_a_reason_and_is_recorded(toy: Registry, numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="needs a reason"):
        toy.promote(numbers["worse"], force=True)
    toy.promote(numbers["worse"], force=True, reason="the other one leaks")
    event = toy.history()[-1]
    assert (event.forced, event.reason, event.after) == (True, "the other one leaks", numbers["worse"])
    assert [gate["name"] for gate in event.gates if not gate["passed"]] == ["champion", "calibration"]


def test_force_without_a_failed_gate_is_not_recorded_as_forced(toy: Registry, numbers: dict[str, int]) -> None:
    assert not toy.promote(numbers["better"], force=True, reason="sure").event.forced


def test_every_verdict_is_recorded_on_the_version(toy: Registry, numbers: dict[str, int]) -> None:
    before = {key for key in toy.show(numbers["worse"]).tags if key.startswith("gates/champion/")}
    with pytest.raises(GateError):
        toy.promote(numbers["worse"])
    tags = toy.show(numbers["worse"]).tags
    (key,) = {key for key in tags if key.startswith("gates/champion/")} - before
    verdict = json.loads(tags[key])
    assert (verdict["passed"], verdict["forced"]) == (False, False)
    assert {"name", "passed", "message", "value", "limit", "required"} == set(verdict["gates"][0])


def test_an_incomplete_release_cannot_be_forced(toy: Registry, numbers: dict[str, int], workspace: Path) -> None:
    path = stored(toy, numbers["better"], workspace) / "model.onnx"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1])
        with pytest.raises(GateError, match="cannot be forced") as error:
            toy.promote(numbers["better"], force=True, reason="please")
        assert failed(error) == ["files"]
        assert toy.aliases() == {"champion": numbers["good"]}
    finally:
        path.write_bytes(content)


def test_golden_images_must_be_classified_correctly(toy: Registry, numbers: dict[str, int], tmp_path: Path) -> None:
    for colour in COLOURS:
        (tmp_path / colour).mkdir()
        (tmp_path / colour / "plain.png").write_bytes(make_image(colour if colour != "green" else (0, 200, 0)))
    toy.promote(numbers["better"], golden_dir=str(tmp_path))
    (tmp_path / "red" / "really-blue.png").write_bytes(make_image("blue"))
    (tmp_path / "red" / "broken.png").write_bytes(b"not an image")
    gates = check_gates(toy, toy.show(numbers["better"]), "champion", None, Policy(golden_dir=str(tmp_path)))
    golden = next(gate for gate in gates if gate.name == "golden images")
    assert (golden.passed, golden.value, golden.limit) == (False, 2, 0)
    assert "red/really-blue.png (blue)" in golden.message
    with pytest.raises(DataError, match="no golden images"):
        check_gates(toy, toy.show(numbers["better"]), "champion", None, Policy(golden_dir=str(tmp_path / "red")))
