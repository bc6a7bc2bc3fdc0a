"""Versions that vitcifar 0.1 registered (manifest format 1, its tags and history) work as those of today."""

import base64
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from support.old_release import add_old_version
from support.scores import add_version, scores
from support.toys import make_image

from vitcifar.evaluation.compare import compare_evaluations
from vitcifar.registry.benchmark import read_old_tables
from vitcifar.registry.card import model_card
from vitcifar.registry.diff import compare_releases
from vitcifar.registry.doctor import diagnose
from vitcifar.registry.gates import read_evaluation
from vitcifar.registry.registry import Registry
from vitcifar.registry.verdicts import read_verdicts
from vitcifar.release import served
from vitcifar.serving.loaded_model import open_version

pytestmark = pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def old(workspace: Path) -> Registry:
    """Two versions of 0.1, 1 the champion and 2 served in int8, and a third of today."""
    add_old_version(workspace / "old-1", evaluation=scores(360))
    add_old_version(workspace / "old-2", evaluation=scores(392, seed=2), int8=True)
    add_version(workspace, "new", scores(392, seed=2))
    registry = Registry("toy")
    registry.client.set_registered_model_alias("toy", "champion", "1")
    return registry


def test_an_old_version_is_listed_with_its_digest_and_accuracy(old: Registry) -> None:
    version = old.show("champion")
    assert (version.number, version.tags["release_id"], old.accuracy(version)) == (1, "old", 0.9)
    assert old.history()[0].after == 1


def test_an_old_version_is_pulled_and_verified(old: Registry) -> None:
    release = old.pull(2, pytorch=True)
    old.verify_store(old.show(2))
    assert release.serves == "model.int8.onnx"
    assert release.checks["served"]["num_edge_cases_changed"] == 0


def test_an_old_version_predicts(old: Registry) -> None:
    prediction = open_version(old, 1).classifier.predict(make_image("red"))
    assert prediction.label == "red"


@pytest.mark.parametrize("form", ["list", "text", "array", "column"])
def test_mlflow_checks_no_input_of_an_old_version(old: Registry, form: str) -> None:
    """Its MLmodel has no signature."""
    image = make_image("red")
    forms = {
        "list": [image],
        "text": base64.b64encode(image).decode(),
        "array": np.full((1, 4, 4, 3), (255, 0, 0), np.uint8),
        "column": pd.DataFrame({"any": [image]}),
    }
    (row,) = mlflow.pyfunc.load_model("models:/toy/1").predict(forms[form])
    assert (row["label"], row["version"]) == ("red", 1)


def test_the_card_of_an_old_version_shows_its_gates_and_latencies(old: Registry) -> None:
    card = model_card(old.show(2), old.pull(2))
    for line in (
        "- 2026-11-25 11:10:41Z, champion, root: passed: asked for by run 11afc\n",
        "  - passed files: all whole\n",
        "  - not required champion: no other version is champion\n",
        "- accuracy: 0.9800 (95% interval",
        "From tags of an older vitcifar, which can be edited; `vitcifar benchmark` measures again:",
        "| onnx-int8 | 1 | 0.0 | - | 10.7 |",
        "- int8, static: accepted, as right as the float file and faster",
        "0 of 18 predictions on edge-case files changed",
    ):
        assert line in card
    assert [gate.value for gate in read_verdicts(old.show(2))[0].gates][:2] == [3, 5.2e-06]
    (table,) = read_old_tables(old.show(1)).values()
    assert [row.format for row in table.rows][2:] == ["onnx-fp32", "onnx-int8"]


def test_old_and_new_versions_are_compared(old: Registry) -> None:
    first, second, new = (read_evaluation(old.pull(number)) for number in (1, 2, 3))
    assert first and second and new
    assert compare_evaluations(second, new).difference == 0
    assert compare_evaluations(new, first).outcome == "better"
    found = {(one.section, one.name): (one.before, one.after) for one in compare_releases(old.pull(1), old.pull(3))}
    assert found["metrics", "accuracy"] == (0.9, 0.98)
    assert found["config", "analysis"] == ("full", None)


def test_an_old_version_is_promoted_through_the_gates_and_rolled_back(
    old: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "saturates_int8", lambda: False)
    promotion = old.promote(2, require="better", reason="better")
    assert all(gate.passed for gate in promotion.gates)
    assert old.aliases() == {"champion": 2}
    assert old.rollback(reason="slow").after == 1
    assert [event.kind for event in old.history("champion")] == ["promote", "promote", "rollback"]
    assert {gate["name"] for event in old.history() for gate in event.gates} >= {"files", "parity", "champion"}


def test_the_doctor_finds_nothing_wrong_with_old_versions(old: Registry) -> None:
    found = diagnose(old, stale_seconds=0)
    assert [finding for finding in found if finding.kind != "abandoned export"] == []  # of any process on this machine
