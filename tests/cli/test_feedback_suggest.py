"""`vitcifar suggest`: what it prints and writes of a folder, what it leaves out, and wrong calls."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from vitcifar import cli
from vitcifar.data.dataset import pixel_hash
from vitcifar.data.sources import open_source
from vitcifar.serving.feedback import Entry, FeedbackStore
from vitcifar.serving.suggest import read_suggestions

NUM_NEW, NUM_TRAINED_ON = 12, 3


def run(*words: str, fails: bool = False) -> Result:
    result = CliRunner().invoke(cli.main, list(words))
    assert (result.exit_code != 0) is fails, result.output
    return result


@pytest.fixture
def photos(registry: Any, published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """New digits, some that the versions were trained on, and a broken file, in a folder of the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    new = open_source("digits", tmp_path).read("train", np.arange(400, 400 + NUM_NEW)).images
    for name, images in (("new", new), ("known", published.splits.train.images[:NUM_TRAINED_ON])):
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{name}{index:02}.png")
    (folder / "broken.png").write_text("no image")
    return folder


def test_it_prints_and_writes_what_to_label_and_says_what_it_left_out(photos):
    done = run("suggest", "photos", "--num", "5", "--out", "table.csv", "--model-name", "toy")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["rank", "file", "prediction", "probability"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]
    assert "there is no store of feedback sqlite:///feedback.db" in done.stderr
    assert f"Left out, like one of the train images of version 1: {NUM_TRAINED_ON}" in done.stderr
    assert "broken.png is not a supported image" in done.stderr and "5 suggestions in table.csv" in done.stderr
    assert [Path(one.path).name for one in read_suggestions(Path("table.csv"))] == [
        Path(line.split()[1]).name for line in lines[1:]
    ]
    assert "table.csv exists" in run("suggest", "photos", "--out", "table.csv", fails=True).output


def test_a_labelled_image_is_not_suggested_again_by_any_version(photos):
    store = FeedbackStore("sqlite:///feedback.db")
    for index in range(NUM_NEW - 1):
        digest = pixel_hash(np.asarray(Image.open(photos / f"new{index:02}.png").convert("RGB")))
        fields: Any = {"model": "toy", "version": 2, "release_digest": "d", "source": "suggested", "probability": 0.5}
        store.add(Entry(image_hash=digest, label="3", truth="3", **fields), None)
    done = run("suggest", "photos", "--model-name", "toy", "--keep-features", "0")
    assert f"Left out, labelled already: {NUM_NEW - 1}" in done.stderr
    assert len(done.stdout.splitlines()) == 2 and f"new{NUM_NEW - 1}.png" in done.stdout
    for path in (photos / f"new{NUM_NEW - 1}.png", photos / "broken.png"):
        path.unlink()
    done = run("suggest", "photos", "--model-name", "toy", fails=True)
    assert "None of the 14 images is left to label: name another folder." in done.output
    listed = run("feedback", "list", "--model-name", "toy")
    assert f"{NUM_NEW - 1} labelled suggestions are left out" in listed.stderr


def test_a_wrong_call_is_one_sentence(photos):
    assert "There is no folder nowhere" in run("suggest", "nowhere", "--model-name", "toy", fails=True).output
    assert "table.txt is no CSV file" in run("suggest", "photos", "--out", "table.txt", fails=True).output
    missing = run("suggest", "photos", "--feedback", "sqlite:///other.db", "--model-name", "toy", fails=True)
    assert "There is no store of feedback sqlite:///other.db" in missing.output
    for words in (["--suggestions", "table.csv"], ["--suggestions", "t.csv", "--feedback", "x", "--page", "off"]):
        assert "type vitcifar app --feedback sqlite:///feedback.db" in run("app", *words, fails=True).output
