"""From use to the next release: serve, disagree, list, export, train on it, and the golden images gate a promotion."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support.commands import options
from support.toys import settle

from vitcifar import cli
from vitcifar.cli.feedback import images_of_versions
from vitcifar.data.edge_cases import to_png
from vitcifar.data.sources import open_source
from vitcifar.experiments import versions
from vitcifar.registry.registry import Registry
from vitcifar.serving.app import launch
from vitcifar.serving.feedback import Entry, FeedbackStore

TRAIN = {
    **{"preset": "digits", "data": "folder", "data_dir": "images", "epochs": "1", "batch_size": "20"},
    **{"train_per_class": "0", "validation_per_class": "2", "test_per_class": "0"},
    **{"analysis": "none", "benchmark_runs": "0", "promote_to": "none"},
}
NUM_TRAIN, NUM_TEST, NUM_SHOWN = 6, 3, 2  # of each class


def run(*words: str, fails: bool = False) -> str:
    result = CliRunner().invoke(cli.main, list(words))
    assert (result.exit_code != 0) is fails, result.output
    return result.output


@pytest.fixture
def shown(tmp_path: Path, new_store: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, str]]:
    """A folder of digits as a dataset, and other digits with their class, which the server will be shown."""
    (tmp_path / "mlflow.db").write_bytes(new_store.read_bytes())
    monkeypatch.chdir(tmp_path)
    settle(tmp_path, monkeypatch)
    source, others = open_source("digits", tmp_path), []
    for label, name in enumerate(source.class_names):
        indices = np.flatnonzero(source.labels("train") == label)[: NUM_TRAIN + NUM_TEST + NUM_SHOWN]
        images = list(source.read("train", indices).images)
        for number, image in enumerate(images[:-NUM_SHOWN]):
            path = tmp_path / "images" / ("train" if number < NUM_TRAIN else "test") / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        others += [(image, name) for image in images[-NUM_SHOWN:]]
    return others


def show(client: httpx.Client, image: np.ndarray, truth: str) -> bool:
    """Send an image, and what it really is if the prediction is wrong; returns whether it is right."""
    files: Any = {"image": ("digit.png", to_png(image))}
    (row,) = client.post("/v1/predict", files=files).json()["predictions"]
    right = row["label"] == truth
    params = {"verdict": "right"} if right else {"verdict": "wrong", "truth": truth}
    answer = client.post("/v1/feedback", params={**params, "version": row["version"]}, files=files)
    assert answer.status_code == 200 and answer.json()["new"], answer.text
    return right


@pytest.mark.timeout(900)
def test_what_people_say_of_a_version_trains_and_gates_the_next_one(shown, tmp_path):
    run("train", *options(TRAIN))
    registry = Registry("vitcifar")
    running = launch(registry, "1", port=0, page=False, feedback="sqlite:///feedback.db")
    with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as client:
        num_right = sum(show(client, image, truth) for image, truth in shown)
        trained_on = Image.open(tmp_path / "images/train/3/0.png").convert("RGB")
        num_right += show(client, np.asarray(trained_on), "3")
    running.close()

    listed = run("feedback", "list")
    row = next(line.split() for line in listed.splitlines() if line.split()[:1] == ["1"])
    assert row[2:7] == [str(num_right), str(21 - num_right), "0", "21", f"{num_right / 21:.4f}"]
    assert "no random sample" in listed
    lines = run("feedback", "list", "--format", "json").splitlines()
    assert Counter(json.loads(line)["truth"] for line in lines) == Counter([*(truth for _, truth in shown), "3"])

    out = run("feedback", "export", "golden", "--as", "golden")
    assert "Left out, like one of the train" in out or "Left out, like one of the validation" in out
    golden = {path.relative_to(tmp_path / "golden") for path in (tmp_path / "golden").glob("*/*")}
    out = run("feedback", "export", "images")
    files = {path.relative_to(tmp_path / "images/train") for path in (tmp_path / "images/train").glob("*/feedback-*")}
    assert files == golden and 18 <= len(files) <= 20, "digits of 8 pixels may be nearly the same"
    assert "fingerprint" in out and not list((tmp_path / "images/test").glob("*/feedback-*"))

    run("train", *options(TRAIN))
    first, second = registry.pull(1), registry.pull(2)
    before, after = (sum(version.counts["train"].values()) for version in (first, second))
    assert after - before == len(files)
    assert second.checks["test"]["fingerprint"] == first.checks["test"]["fingerprint"], "the test images are the same"
    promoted = CliRunner().invoke(cli.main, ["promote", "2", "--golden-dir", "golden"])
    assert f"of {len(golden)} wrong" in next(one for one in promoted.output.splitlines() if "golden images" in one)


@pytest.mark.parametrize("changed", [False, True])
def test_an_export_says_when_the_images_of_a_version_have_changed(monkeypatch, capsys, published, changed):
    release = SimpleNamespace(fingerprint="other" if changed else published.splits.fingerprint)
    registry: Any = SimpleNamespace(pull=lambda number: release)
    monkeypatch.setattr(versions, "recorded_splits", lambda release: published.splits)
    names = {one.name for one in images_of_versions({1}, registry)}
    assert names >= {"the train images of version 1", "the test images of version 1"}
    assert ("the images of version 1 have changed" in capsys.readouterr().err) is changed


def test_names_from_the_store_cannot_write_to_the_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = FeedbackStore("sqlite:///feedback.db")
    odd = "\x1b[31mcat\x1b[0m"
    fields: Any = {"model": "vitcifar", "release_digest": odd, "label": odd, "probability": 0.5, "source": "rest"}
    store.add(Entry(image_hash="0" * 64, version=1, truth=odd, **fields), None)
    for words in (["list"], ["list", "--format", "json"]):
        assert "\x1b" not in run("feedback", *words)


def test_a_wrong_call_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "type vitcifar feedback export images" in run("feedback", "export", fails=True)
    assert "type vitcifar feedback list" in run("feedback", "list", "folder", fails=True)
    assert "There is no store of feedback sqlite:///feedback.db" in run("feedback", "list", fails=True)
    FeedbackStore("sqlite:///feedback.db")
    assert "There is no feedback on vitcifar" in run("feedback", "list", fails=True)
