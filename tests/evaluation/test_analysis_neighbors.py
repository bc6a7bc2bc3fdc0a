"""Nearest training images, and duplicates across splits, identical and near."""

import numpy as np
import pytest

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation import analysis as n


def some_images(images, labels=None, prefix="p"):
    labels = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels, np.int64)
    ids = tuple(f"{prefix}{index}" for index in range(len(images)))
    return ImageDataset(images=images, labels=labels, class_names=("cat", "dog"), ids=ids)


def noise(num, seed=0, side=12):
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3)).astype(np.uint8)


def test_nearest_training_images_are_the_most_similar_first():
    train = some_images(noise(5), prefix="train")
    embeddings = np.array([[1.0, 2.0, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 3.0, 0.0, 0.0]])
    result = n.nearest_training(np.array([2, 0]), embeddings, train, np.eye(5), k=2)
    assert result.queries.tolist() == [2, 0] and result.train is train
    assert result.indices[0, 0] == 2 and result.indices[1].tolist() == [1, 0]
    assert result.cosines[1] == pytest.approx([2 / np.sqrt(5.25), 1 / np.sqrt(5.25)])


def test_there_are_no_more_neighbours_than_training_images():
    train = some_images(noise(3))
    assert n.nearest_training(np.array([0, 1]), np.ones((2, 3)), train, np.eye(3), k=9).indices.shape == (2, 3)


def test_an_embedding_of_zeros_is_similar_to_nothing():
    zeros = some_images(noise(2))
    result = n.nearest_training(np.array([0]), np.zeros((1, 3)), zeros, np.eye(3)[:2], k=2)
    assert result.cosines.tolist() == [[0.0, 0.0]]
    embeddings = {"train": np.zeros((2, 3)), "test": np.zeros((2, 3))}
    splits = {"train": zeros, "test": some_images(noise(2, seed=1))}
    assert n.find_duplicates(splits, embeddings) == ()


def test_duplicates_have_their_ids_and_whether_their_labels_agree():
    train, test, validation = noise(40, 1), noise(20, 2), noise(10, 3)
    test[3] = train[7]
    validation[2] = train[7]
    near = train[11].astype(int)
    near[0, 0] += np.where(near[0, 0] < 128, 3, -3)
    test[5] = near.astype(np.uint8)
    labels = np.zeros(20, int)
    labels[3] = 1
    splits = {
        "train": some_images(train, prefix="train"),
        "validation": some_images(validation, prefix="validation"),
        "test": some_images(test, labels, prefix="test"),
    }
    duplicates = n.find_duplicates(splits, {name: n.thumbnails(split.images) for name, split in splits.items()})
    rows = [(d.split, d.id, d.other_split, d.other_id, d.same_pixels, d.same_label) for d in duplicates]
    assert rows == [
        ("train", "train7", "validation", "validation2", True, True),
        ("train", "train7", "test", "test3", True, False),
        ("validation", "validation2", "test", "test3", True, False),
        ("train", "train11", "test", "test5", False, True),
    ]
    assert [d.similarity for d in duplicates[:3]] == [1.0] * 3 and 0.99 <= duplicates[3].similarity < 1


def test_near_duplicates_use_the_given_embeddings():
    splits = {"train": some_images(noise(3, 1), prefix="a"), "test": some_images(noise(2, 2), prefix="b")}
    embeddings = {"train": np.eye(3), "test": np.array([[0.0, 1.0, 0.01], [0.5, 0.5, 0.5]])}
    duplicates = n.find_duplicates(splits, embeddings, threshold=0.9)
    assert [(d.id, d.other_id) for d in duplicates] == [("a1", "b0")]
    assert n.find_duplicates(splits, embeddings, threshold=1.0) == ()


def test_the_cosine_of_concatenated_embeddings_is_the_mean_of_their_cosines():
    one, other = np.array([[3.0, 0.0], [0.0, 5.0]]), np.array([[1.0, 1.0], [9.0, 9.0]])
    both = n.concat_embeddings(one, other)
    cosine = both[0] @ both[1] / np.linalg.norm(both, axis=1).prod()
    assert both.shape == (2, 4) and cosine == pytest.approx((0 + 1) / 2)


def test_pixel_hash_differs_for_other_pixels_and_other_shapes():
    flat = np.zeros((2, 8, 3), np.uint8)
    assert n.pixel_hash(flat) == n.pixel_hash(flat.copy()) != n.pixel_hash(flat.reshape(4, 4, 3))
    assert n.pixel_hash(flat.transpose(1, 0, 2)) != n.pixel_hash(flat)
    changed = flat.copy()
    changed[1, 7, 2] = 1
    assert n.pixel_hash(changed) != n.pixel_hash(flat)


def test_flat_images_of_different_colours_are_not_near_duplicates():
    flat = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 100, 200)])
    embeddings = {"train": n.thumbnails(flat[:2]), "test": n.thumbnails(flat[2:])}
    assert n.find_duplicates({"train": some_images(flat[:2]), "test": some_images(flat[2:])}, embeddings) == ()
