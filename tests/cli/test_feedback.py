"""From use to the next release: serve, disagree, list, export, train from the champion, gate, promote, follow."""

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
from support.serving import wait_until
from support.toys import settle

from vitcifar import cli
from vitcifar.cli.feedback import images_of_versions
from vitcifar.data.edge_cases import to_png
from vitcifar.data.sources import open_source
from vitcifar.experiments import versions
from vitcifar.registry.registry import Registry
from vitcifar.serving.app import Page, launch
from vitcifar.serving.feedback import Entry, FeedbackStore
from vitcifar.serving.page import layout

TRAIN = {
    **{"preset": "digits", "data": "folder", "data_dir": "images", "batch_size": "20"},
    **{"train_per_class": "0", "validation_per_class": "3", "test_per_class": "0"},
    **{"analysis": "none", "benchmark_runs": "0", "promote_to": "none"},
}
NUM_TRAIN, NUM_TEST, NUM_SHOWN = 15, 8, 3  # of each class
NUM_GOLDEN = 3
FOLLOWED_SECONDS = 5


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


def predict(client: httpx.Client, image: np.ndarray) -> dict[str, Any]:
    (row,) = client.post("/v1/predict", files={"image": ("digit.png", to_png(image))}).json()["predictions"]
    return dict(row)


def mark(client: httpx.Client, image: np.ndarray, truth: str) -> bool:
    """Send an image, and what it really is if the prediction is wrong; returns whether it is right."""
    row = predict(client, image)
    right = row["label"] == truth
    params = {"verdict": "right"} if right else {"verdict": "wrong", "truth": truth}
    files = {"image": ("digit.png", to_png(image))}
    answer = client.post("/v1/feedback", params={**params, "version": row["version"]}, files=files)
    assert answer.status_code == 200 and answer.json()["new"], answer.text
    return right


def page_status(running: Page) -> str:
    """What the open page gets when it asks for changes, as its timer does."""
    functions = running._gradio_app.blocks.fns.items()
    (number, *_) = (n for n, block in functions if getattr(block.fn, "func", None) is layout.poll)
    body = {"data": [0, "champion"], "fn_index": number, "session_hash": "loop"}
    return str(httpx.post(f"{running.url}/gradio_api/run/predict", json=body, trust_env=False).json()["data"][1])


@pytest.mark.timeout(900)
def test_what_people_say_of_a_champion_trains_the_next_one_which_passes_the_gates_and_is_followed(
    shown, own_graph, tmp_path
):
    run("train", *options({**TRAIN, "epochs": "6"}))
    run("policy", "set", "--max-ece", "0.3", "--reason", "few test images")
    run("promote", "1")
    registry = Registry("vitcifar")

    # 1. Golden images: some on which the champion is right.
    first = launch(registry, "champion", port=0, page=False, feedback="sqlite:///golden.db")
    with httpx.Client(base_url=first.url, trust_env=False, timeout=60) as client:
        rows = [predict(client, image) for image, _ in shown]
        right = [index for index, (_, truth) in enumerate(shown) if rows[index]["label"] == truth]
        golden = sorted(right, key=lambda index: -max(rows[index]["probabilities"].values()))[:NUM_GOLDEN]
        assert all(mark(client, *shown[index]) for index in golden)
    first.close()
    run("feedback", "export", "golden", "--as", "golden", "--feedback", "sqlite:///golden.db")
    assert len(list((tmp_path / "golden").glob("*/*.png"))) == NUM_GOLDEN

    # 2. A server with its page; people mark predictions, and one image on which the champion was trained.
    running = launch(registry, "champion", port=0, feedback="sqlite:///feedback.db")
    others = [pair for index, pair in enumerate(shown) if index not in golden]
    with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as client:
        wrong = [pair for pair in others if not mark(client, *pair)]
        assert wrong, "the champion has something to learn"
        known = np.asarray(Image.open(tmp_path / "images/train/3/0.png").convert("RGB"))
        num_right = len(others) - len(wrong) + mark(client, known, "3")
        check_list(num_right, len(others) + 1, Counter([*(truth for _, truth in others), "3"]))
        files = check_export(tmp_path, len(others))

        # 3. The next version, trained from the champion on what was marked, passes every gate.
        run("train", *options({**TRAIN, "epochs": "12", "weights": "models:/vitcifar/1"}))
        before, after = registry.pull(1), registry.pull(2)
        assert sum(after.counts["train"].values()) - sum(before.counts["train"].values()) == len(files)
        assert after.checks["test"]["fingerprint"] == before.checks["test"]["fingerprint"], "the same test images"
        assert "vitcifar version 1" in page_status(running)
        promoted = run("promote", "2", "--golden-dir", "golden")
        assert f"0 of {NUM_GOLDEN} wrong" in promoted and "champion now points to version 2 (was 1)" in promoted

        # 4. The server and its page follow, and the new version answers.
        wait_until(lambda: "vitcifar version 2" in page_status(running), "not followed", FOLLOWED_SECONDS)
        assert client.get("/health").json()["version"] == 2
        answers = [predict(client, image) for image, _ in wrong]
        assert {row["version"] for row in answers} == {2}
        learned = sum(row["label"] == truth for row, (_, truth) in zip(answers, wrong, strict=True))
        assert learned >= len(wrong) / 2, f"{learned} of {len(wrong)} mistakes are corrected"
    running.close()


def check_list(num_right: int, num_marked: int, truths: Counter[str]) -> None:
    listed = run("feedback", "list")
    row = next(line.split() for line in listed.splitlines() if line.split()[:1] == ["1"])
    counts = [str(num_right), str(num_marked - num_right), "0", str(num_marked), f"{num_right / num_marked:.4f}"]
    assert row[2:7] == counts and "no random sample" in listed
    lines = run("feedback", "list", "--format", "json").splitlines()
    assert Counter(json.loads(line)["truth"] for line in lines) == truths


def check_export(folder: Path, num_new: int) -> list[Path]:
    """Export to the training images; the one that is among them already is left out."""
    out = run("feedback", "export", "images")
    assert "Left out, like one of the train" in out or "Left out, like one of the validation" in out
    files = sorted((folder / "images/train").glob("*/feedback-*"))
    assert num_new - 4 <= len(files) <= num_new, "digits of 8 pixels may be nearly the same"
    assert "fingerprint" in out and not list((folder / "images/test").glob("*/feedback-*"))
    return files


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
