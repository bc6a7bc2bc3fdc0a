"""The store of feedback: one entry for an image, release and truth; bounded; several processes at once."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.project import ROOT
from support.serving import make_model

from vitcifar.data.dataset import pixel_hash
from vitcifar.data.image import read_image
from vitcifar.errors import ServingError
from vitcifar.serving import feedback
from vitcifar.serving.feedback import Entry, FeedbackRefused, FeedbackStore, live_accuracies, record

RED = np.full((8, 8, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    return FeedbackStore(f"sqlite:///{tmp_path}/feedback.db")


def entry(number: int = 0, truth: str | None = "red", **fields: object) -> Entry:
    given = {"version": 1, "release_digest": "d1", "label": "red", "probability": 0.9, "source": "rest", **fields}
    return Entry(image_hash=f"{number:064}", model="colours", truth=truth, **given)  # type: ignore[arg-type]


def test_the_same_image_twice_is_one(store):
    assert store.add(entry(), RED) is True
    assert store.add(entry(source="page"), RED) is False
    assert store.add(entry(truth="blue"), RED) is True, "another truth is another entry"
    assert store.add(entry(release_digest="d2", version=2), None) is True, "so is another release"
    entries = store.entries("colours")
    assert [(one.version, one.truth, one.source, one.has_image) for one in entries] == [
        (1, "red", "rest", True),
        (1, "blue", "rest", True),
        (2, "red", "rest", True),
    ]
    assert all(one.time.endswith("Z") for one in entries) and store.entries("other") == []


def test_an_image_is_kept_as_its_pixels_without_metadata_and_only_if_asked(store, model):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    known, is_new = record(store, model, pixels, right=True, truth="", keep_image=True, source="page")
    assert is_new and known.image_hash == pixel_hash(pixels)
    assert (read_image(store.image(known.image_hash)) == pixels).all()
    record(store, model, RED, right=True, truth="", keep_image=False, source="page")
    assert [one.has_image for one in store.entries("colours")] == [True, False]


def test_an_answer_is_checked_against_the_prediction_and_the_classes(store, model):
    def answer(right: bool, truth: str) -> Entry:
        return record(store, model, RED, right=right, truth=truth, keep_image=False, source="rest")[0]

    assert answer(True, "").truth == answer(True, "red").truth == "red"
    assert answer(False, "blue").truth == "blue" and answer(False, "").truth is None
    for right, truth, sentence in (
        (True, "blue", "makes it wrong"),
        (False, "cat", "'cat' is no class of colours version 7"),
        (False, "red", "mark it as right"),
    ):
        with pytest.raises(FeedbackRefused, match=sentence) as refused:
            answer(right, truth)
        assert refused.value.status == 422


def test_the_accuracy_of_marked_images_counts_each_image_once_and_leaves_out_contradictions(store):
    for number in range(8):
        store.add(entry(number), None)
    store.add(entry(8, "blue"), RED)
    store.add(entry(9, None), RED)
    store.add(entry(7, "green"), None)
    store.add(entry(0, "green", version=2, release_digest="d2", label="green"), None)
    second, first = live_accuracies(store.entries("colours"))
    assert (second.version, second.num_right, second.num_wrong) == (2, 1, 0)
    assert (first.num_right, first.num_wrong, first.num_contradictory, first.num_images) == (7, 2, 1, 2)
    assert first.accuracy == pytest.approx(7 / 9)
    assert first.interval == pytest.approx((0.4526, 0.9368), abs=1e-4)  # Wilson's, for 7 of 9


@pytest.mark.parametrize("limit", ["MAX_ENTRIES", "MAX_IMAGE_BYTES"])
def test_a_full_store_refuses_more_and_keeps_what_it_has(store, monkeypatch, limit):
    store.add(entry(), RED)
    monkeypatch.setattr(feedback, limit, 1)
    with pytest.raises(FeedbackRefused, match="is full") as refused:
        store.add(entry(1), RED)
    assert refused.value.status == 507 and len(store.entries("colours")) == 1


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense", "cannot be used"),
        ("sqlite:////nowhere/feedback.db", "unable to open database file"),
        ("nosuchdb://host/x", "cannot be used"),
        ("postgresql+psycopg://ann:SECRET@127.0.0.1:1/x", "psycopg"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_sentence_without_its_password(url, sentence):
    with pytest.raises(ServingError, match=sentence) as error:
        FeedbackStore(url)
    assert "SECRET" not in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_database_or_is_missing_is_one_sentence(tmp_path):
    (tmp_path / "text.db").write_text("Dear store, " * 200)
    with pytest.raises(ServingError, match="file is not a database"):
        FeedbackStore(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(ServingError, match="There is no store of feedback"):
        FeedbackStore(f"sqlite:///{tmp_path}/none.db", new=False)
    assert not (tmp_path / "none.db").exists()


def test_the_size_of_an_image_is_stored_in_front_of_it(store, tmp_path):
    """SQLite reads a row from its start: 2 GiB of images would be read for the sum of their sizes."""
    store.add(entry(), RED)
    with sqlite3.connect(tmp_path / "feedback.db") as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(feedback_image)")]
    assert names == ["image_hash", "num_bytes", "content"]


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    """They also create the file at once."""
    url = f"sqlite:///{tmp_path}/feedback.db"
    program = [sys.executable, str(ROOT / "tests/programs/write_feedback.py"), url]
    done = subprocess.run(program, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout.split() == ["0"] * 3, done.stderr
    hashes = [one.image_hash for one in FeedbackStore(url).entries("colours")]
    assert sorted(hashes) == [f"{number:064}" for number in [*range(90), 1_000]]
    with sqlite3.connect(tmp_path / "feedback.db") as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)


def test_a_model_without_a_registry_takes_feedback_too(store, toy_onnx):
    made = make_model(toy_onnx)
    assert record(store, made, RED, right=True, truth="", keep_image=True, source="rest")[0].version == 7
