"""An audit: planted faults are found, clean images raise few, and what was left out is said."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image, ImageFilter
from support.noise import noise, some_images
from support.textures import textured_image

from vitcifar.data.splits import read_splits
from vitcifar.evaluation.audit import MAX_FEW, audit_images
from vitcifar.evaluation.duplicates import thumbnails
from vitcifar.presets import resolve

CONFIG = resolve("digits", train_per_class=40, validation_per_class=5, test_per_class=5)


def photos(number, seed=0):
    return np.stack([textured_image(48, 48, seed=1000 * seed + index) for index in range(number)])


def near(datasets):
    return {split: thumbnails(dataset.images) for split, dataset in datasets.items()}


@pytest.fixture(scope="module")
def planted():
    """Photos: a dark one, a blurred one, one in two splits, a near-duplicate, and one with the wrong label."""
    train, test, labels = photos(40), photos(20, seed=1), np.arange(40) % 2
    train[3] = train[3] * 0.2
    train[5] = np.asarray(Image.fromarray(train[5]).filter(ImageFilter.GaussianBlur(4.0)))
    test[7] = train[9]
    train[20] = np.clip(train[21] * 0.9 + 5, 0, 255)
    probabilities = {"train": np.where(np.eye(2)[labels] == 1, 0.9, 0.1), "test": np.full((20, 2), [0.9, 0.1])}
    probabilities["train"][11] = [0.97, 0.03]  # of class 1
    datasets = {"train": some_images(train, labels, "train"), "test": some_images(test, prefix="test")}
    return audit_images(datasets, probabilities=probabilities, embeddings=near(datasets))


def ids(audit, kind):
    return [issue.id for issue in audit.of_kind(kind)]


def test_planted_faults_are_found_and_nothing_else(planted):
    assert planted.counts() == {"label error": 1, "identical": 2, "near-duplicate": 2, "dark": 1, "blurry": 1}
    assert ids(planted, "dark") == ["train3"] and ids(planted, "blurry") == ["train5"]
    assert ids(planted, "identical") == ["train9", "test7"]
    assert sorted(ids(planted, "near-duplicate")) == ["train20", "train21"]
    assert ids(planted, "label error") == ["train11"]


def test_an_issue_says_where_the_image_is_how_bad_it_is_and_what_to_do(planted):
    (wrong,), (twin, _) = planted.of_kind("label error"), planted.of_kind("identical")
    assert (wrong.split, wrong.index, wrong.label, wrong.score) == ("train", 11, "dog", pytest.approx(0.03))
    assert wrong.suggestion == "rather cat (97%): look at it, and move it to that class if it is one"
    assert twin.other == ("test", 7) and twin.score == 0
    assert twin.suggestion == "identical to test7, which has another class: keep the one whose class is right"
    pair = planted.of_kind("near-duplicate")[0]
    assert 0 <= pair.score < 0.01 and pair.suggestion.startswith("nearly identical to train2")
    assert planted.num_judged == planted.num_images == 60 and planted.accuracy == pytest.approx(59 / 60)


def test_an_audit_as_json_has_every_issue(planted):
    plain = json.loads(json.dumps(planted.to_dict(), allow_nan=False))
    assert len(plain["issues"]) == len(planted.issues) and plain["num_images"] == {"train": 40, "test": 20}
    datasets = {"train": some_images(noise(2))}
    assert json.dumps(audit_images(datasets, probabilities={}).to_dict(), allow_nan=False)


def test_clean_digits_raise_few():
    datasets = read_splits(CONFIG).datasets
    audit = audit_images(datasets, probabilities={}, embeddings=near(datasets))
    assert len(audit.issues) <= 0.02 * audit.num_images and not audit.notes and not audit.num_judged


def test_what_most_images_are_is_said_and_not_listed():
    dark = (photos(30) * 0.2).astype(np.uint8)
    dark[12:] = photos(18, seed=1)
    audit = audit_images({"train": some_images(dark)}, probabilities={})
    assert not audit.of_kind("dark")
    assert audit.notes == ("Dark: 12 of 30 images. As so many are, none is listed.",)
    dark[MAX_FEW:] = photos(30 - MAX_FEW, seed=1)
    assert len(audit_images({"train": some_images(dark)}, probabilities={}).of_kind("dark")) == MAX_FEW


def test_of_many_label_errors_by_poor_predictions_the_most_likely_are_listed_and_the_accuracy_is_said():
    random = np.random.default_rng(0)
    dataset = some_images(noise(200, side=4), random.integers(0, 2, 200))
    predicted = random.dirichlet([1, 1], 200)
    audit = audit_images({"train": dataset}, probabilities={"train": predicted})
    assert len(audit.of_kind("label error")) == 20
    assert "labels are likely wrong by the predictions, which have an accuracy of" in audit.notes[0]
    scores = [issue.score for issue in audit.of_kind("label error")]
    assert scores == sorted(scores)


def test_an_empty_split_and_one_without_predictions_are_left_out():
    dataset = some_images(noise(3), [0, 1, 1])
    empty = dataclasses.replace(dataset, images=[], labels=np.zeros(0, np.int64), ids=())
    audit = audit_images({"train": dataset, "validation": empty}, probabilities={"validation": np.zeros((0, 2))})
    assert list(audit.datasets) == ["train"] and audit.num_judged == 0 and np.isnan(audit.accuracy)
