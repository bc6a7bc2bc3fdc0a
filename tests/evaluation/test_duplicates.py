"""Duplicates across splits, identical and near, and the clusters they form."""

import numpy as np
import pytest
from support.noise import noise, some_images

from vitcifar.evaluation import duplicates as n


def test_an_embedding_of_zeros_has_no_near_duplicate():
    splits = {"train": some_images(noise(2)), "test": some_images(noise(2, seed=1))}
    embeddings = {"train": np.zeros((2, 3)), "test": np.zeros((2, 3))}
    assert n.find_duplicates(splits, embeddings).listed == ()


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
    rows = [(d.split, d.id, d.other_split, d.other_id, d.same_pixels, d.same_label) for d in duplicates.listed]
    assert rows == [
        ("train", "train7", "validation", "validation2", True, True),
        ("train", "train11", "test", "test5", False, True),
    ]
    identical, near = duplicates.listed
    assert (identical.similarity, identical.num_images, near.num_images) == (1.0, 3, 2) and 0.99 <= near.similarity < 1
    assert (duplicates.num_pairs, duplicates.num_same_pixels, duplicates.num_clusters) == (4, 3, 2)
    assert duplicates.num_images == {"train": 2, "validation": 1, "test": 2}


def test_near_duplicates_use_the_given_embeddings():
    splits = {"train": some_images(noise(3, 1), prefix="a"), "test": some_images(noise(2, 2), prefix="b")}
    embeddings = {"train": np.eye(3), "test": np.array([[0.0, 1.0, 0.01], [0.5, 0.5, 0.5]])}
    duplicates = n.find_duplicates(splits, embeddings, threshold=0.9)
    assert [(d.id, d.other_id) for d in duplicates.listed] == [("a1", "b0")]
    assert n.find_duplicates(splits, embeddings, threshold=1.0).num_pairs == 0


def test_the_cosine_of_concatenated_embeddings_is_the_mean_of_their_cosines():
    one, other = np.array([[3.0, 0.0], [0.0, 5.0]]), np.array([[1.0, 1.0], [9.0, 9.0]])
    both = n.concat_embeddings(one, other)
    cosine = both[0] @ both[1] / np.linalg.norm(both, axis=1).prod()
    assert both.shape == (2, 4) and cosine == pytest.approx((0 + 1) / 2)


def test_an_image_is_a_near_duplicate_of_others_from_the_threshold_on():
    images, others = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), np.array([[5.0, 0.1], [-1.0, -1.0]])
    assert n.is_near_duplicate(images, others).tolist() == [True, False, False, False]
    assert n.is_near_duplicate(images, others, threshold=0.7).tolist() == [True, False, True, False]
    assert n.is_near_duplicate(images[:0], others).shape == (0,) and not n.is_near_duplicate(images, others[:0]).any()


def test_flat_images_of_different_colours_are_not_near_duplicates():
    flat = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 100, 200)])
    embeddings = {"train": n.thumbnails(flat[:2]), "test": n.thumbnails(flat[2:])}
    assert n.find_duplicates({"train": some_images(flat[:2]), "test": some_images(flat[2:])}, embeddings).listed == ()
    same = n.find_duplicates({"train": some_images(flat[:2]), "test": some_images(flat[:1])}, embeddings)
    assert (same.num_pairs, same.num_same_pixels, same.listed[0].same_pixels) == (1, 1, True)


def test_the_frames_of_a_film_are_one_cluster_however_many_pairs_they_are(monkeypatch):
    monkeypatch.setattr(n, "MAX_PAIRS", 50)  # so that a cluster is put together from parts
    scene, other, alone = noise(1, 1)[0], noise(1, 2)[0], noise(6, 3)
    film = np.stack([np.clip(scene.astype(int) + shift, 0, 255) for shift in range(-5, 5)] * 6).astype(np.uint8)  # 60
    train = some_images(np.concatenate([film[:40], [other], alone[:3]]), prefix="train")
    test = some_images(np.concatenate([film[40:], [other], alone[3:]]), prefix="test")
    splits = {"train": train, "test": test}
    found = n.find_duplicates(splits, {name: n.thumbnails(split.images) for name, split in splits.items()})
    assert (found.num_pairs, found.num_same_pixels) == (40 * 20 + 1, 10 * 4 * 2 + 1)
    assert found.num_clusters == 2 and [pair.num_images for pair in found.listed] == [60, 2]
    assert found.num_images == {"train": 41, "test": 21}


def test_clusters_beyond_the_first_are_counted_and_not_listed(monkeypatch):
    monkeypatch.setattr(n, "MAX_LISTED", 3)
    splits = {"train": some_images(noise(9)), "test": some_images(noise(9))}
    found = n.find_duplicates(splits, {name: n.thumbnails(split.images) for name, split in splits.items()})
    assert (found.num_pairs, found.num_clusters, len(found.listed)) == (9, 9, 3)


def test_the_duplicate_that_matters_most_is_identical_and_in_another_split():
    groups = np.array(["train", "train", "train", "test", "test"])
    other, similarity = n.nearest_duplicates(["a", "b", "a", "a", "c"], groups)
    assert other.tolist() == [3, -1, 3, 0, -1] and similarity.tolist() == [1, 0, 1, 1, 0]
    embeddings = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.01], [0.0, 1.0], [0.02, 1.0]])
    other, similarity = n.nearest_duplicates([*"abcde"], groups, embeddings)
    assert other.tolist() == [2, 3, 0, 1, 1], "the nearest, also in the same split; of equal ones that in another"
    assert (similarity[other >= 0] >= 0.99).all() and (similarity < 1).all(), "1 is kept for identical pixels"
    assert (n.nearest_duplicates([*"abcde"], groups, embeddings.astype(np.float32))[1] < 1).all()


def test_one_image_and_rows_of_zeros_have_no_duplicate():
    assert n.nearest_duplicates(["a"], np.array(["train"]), np.ones((1, 3)))[0].tolist() == [-1]
    assert n.nearest_duplicates(["a", "b"], np.array(["train"] * 2), np.zeros((2, 3)))[0].tolist() == [-1, -1]
