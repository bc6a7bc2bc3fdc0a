"""Which images a split takes, and that a fingerprint tells any two sets apart."""

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.project import ROOT

from vitcifar.data.dataset import ImageDataset, fingerprint, stack
from vitcifar.data.sources import open_source
from vitcifar.data.splits import choose_indices, make_splits
from vitcifar.errors import DataError

TRAIN_OF_SEED_7 = ("train/1/0", "train/1/7", "train/1/3", "train/0/2", "train/0/7", "train/0/1")
VALIDATION_OF_SEED_7 = ("train/1/2", "train/0/0", "train/0/6", "train/1/6")
TEST_OF_SEED_7 = ("test/1/4", "test/0/2", "test/1/1", "test/0/0")


class FakeSource:
    """A source whose images are 2 x 2 and tell which one they are; `order` shuffles how they are listed."""

    def __init__(self, train: list[int], test: list[int], order: int | None = None) -> None:
        self.class_names = tuple(f"class{label}" for label in range(len(train)))
        self._rows = {}
        for part, counts in (("train", train), ("test", test)):
            rows = [(f"{part}/{label}/{place}", label) for label, count in enumerate(counts) for place in range(count)]
            if order is not None:
                np.random.default_rng(order).shuffle(rows)
            self._rows[part] = [(str(id), int(label)) for id, label in rows]
        self.num_read = 0
        self.parts = ("train", "test")

    def labels(self, part):
        return np.array([label for _, label in self._rows[part]], dtype=np.int64)

    def ids(self, part):
        return tuple(id for id, _ in self._rows[part])

    def read(self, part, indices):
        rows = [self._rows[part][index] for index in indices]
        self.num_read += len(rows)
        images = [np.full((2, 2, 3), hashlib.sha256(id.encode()).digest()[0], np.uint8) for id, _ in rows]
        return ImageDataset(
            images=np.array(images, dtype=np.uint8).reshape(-1, 2, 2, 3),
            labels=np.array([label for _, label in rows], dtype=np.int64),
            class_names=self.class_names,
            ids=tuple(id for id, _ in rows),
        )


def split_source(source, train=3, validation=2, test=2, seed=0):
    return make_splits(source, train_per_class=train, validation_per_class=validation, test_per_class=test, seed=seed)


def some_images(sizes=((4, 5), (4, 5), (4, 5)), labels=(0, 1, 0), class_names=("cat", "dog")) -> ImageDataset:
    images = [
        (np.arange(height * width * 3).reshape(height, width, 3) * 7 + place).astype(np.uint8)
        for place, (height, width) in enumerate(sizes)
    ]
    ids = tuple(f"id{place}" for place in range(len(images)))
    return ImageDataset(images=stack(images), labels=np.array(labels, dtype=np.int64), class_names=class_names, ids=ids)


# Members


def test_the_indices_for_a_seed_are_exactly_these():
    splits = split_source(FakeSource([8, 8], [5, 5]), seed=7)
    assert splits.train.ids == TRAIN_OF_SEED_7
    assert splits.validation.ids == VALIDATION_OF_SEED_7
    assert splits.test.ids == TEST_OF_SEED_7


def test_the_indices_of_digits_for_seed_0_are_exactly_these():
    splits = split_source(open_source("digits", Path("unused")), train=100, validation=25, test=25)
    ids = {
        split: hashlib.sha256("\n".join(dataset.ids).encode()).hexdigest() for split, dataset in splits.datasets.items()
    }
    assert ids == {
        "train": "c31bc29813e79f72b43ce796ead31c0b83bd0cd6303088909a0d3a27fee8eb7f",
        "validation": "9df965052b022a61be45dfcdfd3b05ab23cf86cfa27668617c49ae531462fe8a",
        "test": "ff1b0b88b389f81e283345e4d6b4bedb33e7b6e6b47805acfd624375a3030aa9",
    }
    assert splits.fingerprint == "b2b7d8753d9b5c7c6220a948867515ecb23749fb7bad030d3a8256a799e9560a"


@settings(max_examples=25, deadline=None)
@given(order=st.integers(0, 2**32 - 1), seed=st.integers(0, 2**32 - 1))
def test_the_indices_do_not_depend_on_the_order_in_which_files_are_listed(order, seed):
    listed, shuffled = (
        split_source(FakeSource([9, 7, 8], [4, 5, 6]), seed=seed),
        split_source(FakeSource([9, 7, 8], [4, 5, 6], order), seed=seed),
    )
    assert [dataset.ids for dataset in listed.datasets.values()] == [
        dataset.ids for dataset in shuffled.datasets.values()
    ]
    assert listed.fingerprint == shuffled.fingerprint


@settings(max_examples=60, deadline=None)
@given(
    train=st.integers(1, 5),
    validation=st.integers(1, 4),
    test=st.integers(1, 5),
    extra=st.lists(st.integers(0, 6), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
)
def test_every_class_has_exactly_what_was_asked_for_and_no_two_splits_share_an_image(
    train, validation, test, extra, seed
):
    source = FakeSource([train + validation + more for more in extra], [test + more for more in extra])
    splits = split_source(source, train, validation, test, seed)
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        assert set(splits.counts()[split].values()) == {count}
    ids = list(itertools.chain.from_iterable(dataset.ids for dataset in splits.datasets.values()))
    assert len(ids) == len(set(ids))


def test_labels_and_pixels_stay_with_their_ids():
    splits = split_source(FakeSource([8, 8, 8], [4, 4, 4], order=3))
    for dataset in splits.datasets.values():
        for image, label, id in zip(dataset.images, dataset.labels, dataset.ids, strict=True):
            assert int(id.split("/")[1]) == label
            assert (image == hashlib.sha256(id.encode()).digest()[0]).all()


def test_zero_takes_all_that_validation_left_and_the_complete_test_part():
    splits = split_source(FakeSource([9, 6], [4, 5]), train=0, validation=2, test=0)
    assert splits.counts() == {
        "train": {"class0": 7, "class1": 4},
        "validation": {"class0": 2, "class1": 2},
        "test": {"class0": 4, "class1": 5},
    }


def test_more_training_images_add_to_the_fewer_and_leave_validation_and_test_as_they_are():
    few, many, all_left = (split_source(FakeSource([20, 20], [9, 9]), train=count) for count in (3, 9, 0))
    assert set(few.train.ids) < set(many.train.ids) < set(all_left.train.ids)
    assert few.validation.ids == many.validation.ids == all_left.validation.ids
    assert few.test.ids == many.test.ids == all_left.test.ids


def test_another_seed_takes_other_images_in_every_split():
    one, other = (
        split_source(FakeSource([90, 90], [90, 90]), seed=1),
        split_source(FakeSource([90, 90], [90, 90]), seed=2),
    )
    for split in ("train", "validation", "test"):
        assert set(one.datasets[split].ids) != set(other.datasets[split].ids)


def test_the_classes_come_mixed():
    labels = split_source(FakeSource([50, 50], [9, 9]), train=40).train.labels
    assert np.count_nonzero(np.diff(labels)) > 20


def test_indices_are_chosen_without_reading_an_image():
    source = FakeSource([9, 9], [9, 9])
    members = choose_indices(source, train_per_class=3, validation_per_class=2, test_per_class=4, seed=0)
    assert {split: len(indices) for split, indices in members.items()} == {"train": 6, "validation": 4, "test": 8}
    assert source.num_read == 0


def test_the_same_indices_in_another_process_with_another_hash_seed():
    code = """if True:
        from pathlib import Path
        from vitcifar.data.sources import open_source
        from vitcifar.data.splits import make_splits
        source = open_source("digits", Path("x"))
        print(make_splits(source, train_per_class=9, validation_per_class=5, test_per_class=5, seed=3).fingerprint)
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = split_source(open_source("digits", Path("x")), train=9, validation=5, test=5, seed=3)
    assert done.stdout.strip() == here.fingerprint


# Too few


def test_too_few_images_are_counted_class_by_class_with_what_to_type():
    with pytest.raises(DataError) as caught:
        split_source(FakeSource([12, 9, 8], [2, 5, 5]), train=8, validation=2, test=3)
    assert str(caught.value) == (
        "Too few images: 8 for training and 2 for validation per class need 10, but class1 has 9, class2 has 8 "
        "(type --train-per-class 6); for the test 3 per class are needed, but class0 has 2 (type --test-per-class 2)."
    )


def test_what_the_error_says_to_type_works():
    splits = split_source(FakeSource([12, 9, 8], [2, 5, 5]), train=6, validation=2, test=2)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (18, 6, 6)


def test_validation_that_leaves_nothing_to_train_on_is_rejected():
    with pytest.raises(DataError, match=r"class0 has 5 \(type a smaller --validation-per-class\)"):
        split_source(FakeSource([5, 9], [5, 5]), train=0, validation=5)


def test_a_class_without_test_images_is_rejected():
    with pytest.raises(DataError, match=r"class1 has 0 \(add some\)"):
        split_source(FakeSource([9, 9], [5, 0]), test=0)


def test_of_a_thousand_short_classes_the_error_lists_twenty():
    with pytest.raises(DataError, match="class19 has 3 and 980 more"):
        split_source(FakeSource([3] * 1000, [5] * 1000))


# Fingerprint


def test_the_fingerprint_is_a_sha256_that_is_the_same_everywhere():
    assert fingerprint(some_images()) == "9ec6c323efbb8aa6ad9c4ce5694641d845a9995e4c6fd0de79db9d386fc52718"


@settings(max_examples=100, deadline=None)
@given(
    image=st.integers(0, 2),
    y=st.integers(0, 3),
    x=st.integers(0, 4),
    channel=st.integers(0, 2),
    by=st.integers(1, 255),
)
def test_the_fingerprint_changes_with_one_pixel_anywhere(image, y, x, channel, by):
    dataset = some_images()
    before = fingerprint(dataset)
    dataset.images[image][y, x, channel] ^= by
    assert fingerprint(dataset) != before


def test_the_fingerprint_changes_with_the_very_last_pixel_of_many():
    images = np.zeros((1000, 32, 32, 3), np.uint8)
    dataset = ImageDataset(
        images=images, labels=np.zeros(1000, np.int64), class_names=("a", "b"), ids=tuple(map(str, range(1000)))
    )
    before = fingerprint(dataset)
    images[-1, -1, -1, -1] = 1
    assert fingerprint(dataset) != before


@pytest.mark.parametrize(
    "other",
    [
        some_images(labels=(0, 1, 1)),
        some_images(class_names=("cat", "Dog")),
        some_images(class_names=("cat", "dog", "horse")),
        some_images().subset([1, 0, 2]),
        some_images().subset([0, 1]),
        some_images(sizes=((5, 4), (4, 5), (4, 5))),
        some_images(sizes=((2, 10), (2, 10), (2, 10))),
    ],
    ids=["a label", "a class name", "one more class", "the order", "one less", "one shape", "all shapes"],
)
def test_the_fingerprint_changes_with(other):
    assert fingerprint(other) != fingerprint(some_images())


def test_the_fingerprint_does_not_depend_on_ids_on_the_container_or_on_the_layout_in_memory():
    dataset = some_images()
    planes_first = np.ascontiguousarray(dataset.images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    for images in (list(dataset.images), planes_first):
        same = ImageDataset(images=images, labels=dataset.labels, class_names=dataset.class_names, ids=("x", "y", "z"))
        assert fingerprint(same) == fingerprint(dataset)


def test_the_fingerprint_of_splits_changes_when_two_splits_change_places():
    splits = split_source(FakeSource([9, 9], [5, 5]), train=2, validation=2, test=2)
    swapped = type(splits)(train=splits.validation, validation=splits.train, test=splits.test)
    assert splits.fingerprint != swapped.fingerprint
    assert len(splits.fingerprint) == 64


# Images


def test_a_subset_keeps_order_labels_and_ids():
    dataset = some_images(sizes=((4, 5), (6, 7), (4, 5)))
    assert isinstance(dataset.images, list)
    chosen = dataset.subset(np.array([2, 0]))
    assert isinstance(chosen.images, np.ndarray)  # one size again
    assert chosen.ids == ("id2", "id0")
    assert chosen.labels.tolist() == [0, 0]
    np.testing.assert_array_equal(chosen.images[0], dataset.images[2])
    assert len(chosen) == 2


def test_an_empty_subset_is_a_set_of_no_images():
    empty = some_images().subset([])
    assert len(empty) == 0
    assert empty.counts() == {"cat": 0, "dog": 0}
    assert json.dumps(empty.counts())
