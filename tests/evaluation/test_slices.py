"""Slices of a dataset by brightness, contrast and size, and Holm's correction."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.metrics import evaluate
from vitcifar.evaluation.slices import evaluate_slices, holm, image_properties


def some_images(images, labels=None, prefix="p"):
    labels = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels, np.int64)
    ids = tuple(f"{prefix}{index}" for index in range(len(images)))
    return ImageDataset(images=images, labels=labels, class_names=("cat", "dog"), ids=ids)


def test_properties_of_flat_images():
    images = [np.full((4, 9, 3), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)]
    images[1][0] = (255, 0, 0)
    properties = image_properties(images)
    assert properties["brightness"] == pytest.approx([1.0, 0.299 / 2])
    assert properties["contrast"] == pytest.approx([0.0, 0.299 / 2])
    assert properties["size"] == pytest.approx([6.0, 2.0])


def test_errors_on_dark_images_show_in_the_dark_slice_only():
    values = np.linspace(0, 255, 90).astype(np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (90, 4, 4, 3)).copy()
    labels = np.arange(90) % 2
    predictions = np.where(np.arange(90) < 30, 1 - labels, labels)  # errors on the darkest third
    slices = evaluate_slices(evaluate(np.eye(2)[predictions], labels, ("cat", "dog")), some_images(images, labels))
    assert [(s.property, s.name, s.count, s.accuracy) for s in slices] == [
        ("brightness", "dark", 30, 0.0),
        ("brightness", "medium", 30, 1.0),
        ("brightness", "bright", 30, 1.0),
    ]  # one size and no contrast: nothing to slice by
    assert slices[0].p_value < 1e-6 and slices[0].accuracy_high < 0.2
    assert slices[0].high < slices[1].low


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_each_image_is_in_one_slice_of_each_property(sides):
    images = [np.full((side, side, 3), 40 * side, np.uint8) for side in sides]
    labels = np.zeros(len(sides), np.int64)
    slices = evaluate_slices(evaluate(np.eye(2)[labels], labels, ("cat", "dog")), some_images(images))
    for name in {s.property for s in slices}:
        rows = [s for s in slices if s.property == name]
        assert sum(s.count for s in rows) == len(sides)
        assert all(one.high < two.low for one, two in itertools.pairwise(rows))


def test_holms_correction_worked_out_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
