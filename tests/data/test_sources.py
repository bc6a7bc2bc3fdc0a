"""Sources: which there are, and scikit-learn's digits."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from vitcifar.data.sources import location, open_source
from vitcifar.errors import DataError


def test_a_source_that_does_not_exist_is_answered_with_those_that_do(tmp_path):
    with pytest.raises(DataError, match="choose one of cifar10, folder, digits"):
        open_source("mnist", tmp_path)


def test_digits_are_scikit_learns_in_grey_with_a_fixed_test_part_of_40_a_class():
    source = open_source("digits", Path("not used"))
    assert source.class_names == tuple("0123456789")
    assert np.bincount(source.labels("test")).tolist() == [40] * 10
    assert len(source.ids("train")) == 1797 - 400
    assert not set(source.ids("train")) & set(source.ids("test"))
    dataset = source.read("train", range(len(source.ids("train"))))
    assert dataset.images.shape == (1397, 8, 8, 3)
    assert dataset.images.dtype == np.uint8
    assert (dataset.images.min(), dataset.images.max()) == (0, 255)
    assert (dataset.images[..., 0] == dataset.images[..., 2]).all()


def test_the_place_of_the_images_is_the_folder_or_scikit_learns_file(tmp_path):
    assert location("folder", tmp_path) == location("cifar10", tmp_path) == tmp_path
    digits = location("digits", tmp_path)
    with gzip.open(digits, "rt") as file:  # each row: 64 pixels and the label
        rows = np.loadtxt(file, delimiter=",")
    assert rows.shape == (1797, 65) and np.bincount(rows[:, 64].astype(int)).min() > 170


def test_digits_keep_their_ids_and_labels_in_any_order():
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = open_source("digits", Path("not used"))
    dataset = source.read("test", [399, 0, 17])
    assert dataset.ids == tuple(source.ids("test")[place] for place in (399, 0, 17))
    for image, label, id in zip(dataset.images, dataset.labels, dataset.ids, strict=True):
        number = int(id.removeprefix("digits/"))
        assert digits.target[number] == label
        assert np.abs(digits.images[number] * 255 / 16 - image[..., 1]).max() <= 0.5
