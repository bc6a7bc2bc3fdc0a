"""Other sources, slices, attention, nearest images and duplicates, against numbers worked out otherwise."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn import metrics
from sklearn.neighbors import NearestNeighbors

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation import neighbors as n
from vitcifar.evaluation import ood as o
from vitcifar.evaluation.analysis import rollout
from vitcifar.evaluation.metrics import evaluate
from vitcifar.evaluation.slices import evaluate_slices, holm, image_properties


def some_images(images, labels=None, prefix="p"):
    labels = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels, np.int64)
    ids = tuple(f"{prefix}{place}" for place in range(len(images)))
    return ImageDataset(images=images, labels=labels, class_names=("cat", "dog"), ids=ids)


def noise(num, seed=0, side=12):
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3)).astype(np.uint8)


# Images of another source


def test_outlier_scores_worked_out_by_hand():
    scores = o.ood_scores(np.log([[1.0, 3.0], [4.0, 4.0]]))
    assert scores["max_softmax"] == pytest.approx([0.75, 0.5])
    assert scores["max_logit"] == pytest.approx(np.log([3, 4]))
    assert scores["energy"] == pytest.approx(np.log([4, 8]))
    assert scores["entropy"] == pytest.approx([0.75 * np.log(0.75) + 0.25 * np.log(0.25), np.log(0.5)])
    assert scores["margin"] == pytest.approx([0.5, 0.0])


def test_energy_divides_by_the_temperature_as_in_its_paper():
    logits = np.array([[1.0, 2.0, 4.0]])
    expected = 2.0 * np.log(np.exp(logits / 2.0).sum())
    assert o.ood_scores(logits, temperature=2.0)["energy"] == pytest.approx([expected])


def test_sure_logits_have_finite_scores():
    scores = o.ood_scores(np.array([[1e4, 0.0, -1e4]]))
    assert all(np.isfinite(values).all() for values in scores.values())
    assert scores["entropy"][0] == 0.0


def test_auroc_is_the_chance_that_an_insider_scores_higher():
    random = np.random.default_rng(0)
    inside, outside = random.normal(1, 1, 120).round(1), random.normal(0, 1, 80).round(1)
    found = o.evaluate_score("any", inside, outside)
    u = mannwhitneyu(inside, outside).statistic
    assert found.auroc == pytest.approx(u / (120 * 80))
    is_outside = np.r_[np.zeros(120), np.ones(80)]
    precision = metrics.average_precision_score(is_outside, -np.r_[inside, outside])
    assert found.average_precision == pytest.approx(precision)
    assert (inside >= found.threshold).mean() >= 0.95 > (inside > found.threshold).mean()
    assert found.false_positives == pytest.approx((outside >= found.threshold).mean())


def test_auroc_interval_is_as_wide_as_areas_spread_where_its_model_holds():
    # Hanley & McNeil 1982 take the scores of both sides to be exponential.
    random = np.random.default_rng(0)
    inside, outside = random.exponential(4.0, (4000, 30)), random.exponential(1.0, (4000, 60))
    areas = (inside[:, :, None] > outside[:, None, :]).mean(axis=(1, 2))
    low, high = o.auroc_interval(0.8, 30, 60)  # 4 / (4 + 1)
    assert (high - low) / 2 / 1.959964 == pytest.approx(areas.std(), rel=0.05)
    assert o.auroc_interval(1.0, 10, 10) == (1.0, 1.0)


def test_confident_insiders_are_told_from_flat_outsiders_and_equal_sources_are_not():
    random = np.random.default_rng(0)
    sure = random.normal(size=(200, 5)) + 6 * np.eye(5)[random.integers(0, 5, 200)]
    flat, sure_too = random.normal(size=(200, 5)), np.roll(sure, 1, axis=1)
    found = o.evaluate_ood(sure, flat)
    assert [f.auroc for f in found] == sorted((f.auroc for f in found), reverse=True)
    assert found[-1].auroc > 0.9 and found[0].auroc_low <= found[0].auroc <= found[0].auroc_high
    assert all(f.auroc == pytest.approx(0.5, abs=1e-3) for f in o.evaluate_ood(sure, sure_too))


# Slices


def test_properties_of_flat_pictures():
    images = [np.full((4, 9, 3), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)]
    images[1][0] = (255, 0, 0)
    properties = image_properties(images)
    assert properties["brightness"] == pytest.approx([1.0, 0.299 / 2])
    assert properties["contrast"] == pytest.approx([0.0, 0.299 / 2])
    assert properties["size"] == pytest.approx([6.0, 2.0])


def test_slices_find_that_dark_pictures_are_the_weak_ones():
    values = np.linspace(0, 255, 90).astype(np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (90, 4, 4, 3)).copy()
    labels = np.arange(90) % 2
    answers = np.where(np.arange(90) < 30, 1 - labels, labels)  # the darkest third is wrong
    slices = evaluate_slices(evaluate(np.eye(2)[answers], labels, ("cat", "dog")), some_images(images, labels))
    assert [(s.property, s.name, s.count, s.accuracy) for s in slices] == [
        ("brightness", "dark", 30, 0.0),
        ("brightness", "medium", 30, 1.0),
        ("brightness", "bright", 30, 1.0),
    ]  # one size and no contrast: nothing to slice by
    assert slices[0].p_value < 1e-6 and slices[0].accuracy_high < 0.2
    assert slices[0].high < slices[1].low


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_each_picture_is_in_one_slice_of_each_property(sides):
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


# Attention


def test_rollout_worked_out_by_hand():
    one = np.array([[0.2, 0.8], [0.6, 0.4]])  # the class token and one patch
    two = np.array([[1.0, 0.0], [0.5, 0.5]])
    half = [(layer + np.eye(2)) / 2 for layer in (one, two)]
    assert rollout(np.stack([one, two])[:, None]).tolist() == [[1.0]]
    tokens = np.random.default_rng(0).dirichlet(np.ones(5), size=(3, 2, 5))  # (L, h, T, T)
    flow = np.eye(5)
    for layer in tokens:
        flow = (0.5 * layer.mean(axis=0) + 0.5 * np.eye(5)) @ flow
    assert rollout(tokens).ravel() == pytest.approx(flow[0, 1:] / flow[0, 1:].sum())
    assert half[1] @ half[0] == pytest.approx(np.array([[0.6, 0.4], [0.375, 0.625]]))


def test_rollout_points_at_the_patch_that_the_class_token_reads():
    attention = np.full((2, 3, 10, 10), 0.1)
    attention[1, :, 0] = 0.01
    attention[1, :, 0, 1 + 5] = 0.91  # row 1, column 2 of 3 x 3
    found = rollout(attention)
    assert found.shape == (3, 3) and found.sum() == pytest.approx(1.0)
    assert np.unravel_index(found.argmax(), found.shape) == (1, 2)


def test_rollout_of_patches_that_are_not_a_square_needs_their_grid():
    attention = np.full((1, 1, 7, 7), 1 / 7)
    assert rollout(attention, grid=(2, 3)).shape == (2, 3)
    with pytest.raises(AssertionError):
        rollout(attention)


# Nearest images and duplicates


def test_nearest_equals_scikit_learns_search(monkeypatch):
    monkeypatch.setattr(n, "CHUNK", 7)
    random = np.random.default_rng(0)
    queries, embeddings = random.normal(size=(20, 6)), random.normal(size=(50, 6))
    places, cosines = n.nearest(queries, embeddings, k=4)
    distances, theirs = NearestNeighbors(n_neighbors=4, metric="cosine").fit(embeddings).kneighbors(queries)
    assert places.tolist() == theirs.tolist()
    assert cosines == pytest.approx(1 - distances, abs=1e-5)


def test_nearest_training_pictures_of_chosen_places():
    train = some_images(noise(5), prefix="train")
    found = n.nearest_training(np.array([2, 0]), np.eye(5)[:, ::-1], train, np.eye(5), k=1)
    assert found.indices.tolist() == [[2], [4]] and found.cosines.tolist() == [[1.0], [1.0]]


def test_no_more_neighbours_than_there_are():
    assert n.nearest(np.ones((2, 3)), np.eye(3), k=9)[0].shape == (2, 3)


def test_duplicates_are_found_with_their_ids_and_whether_their_labels_agree(monkeypatch):
    monkeypatch.setattr(n, "CHUNK", 7)
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
    found = n.find_duplicates(splits)
    told = [(d.split, d.id, d.other_split, d.other_id, d.same_pixels, d.same_label) for d in found]
    assert told == [
        ("train", "train7", "validation", "validation2", True, True),
        ("train", "train7", "test", "test3", True, False),
        ("validation", "validation2", "test", "test3", True, False),
        ("train", "train11", "test", "test5", False, True),
    ]
    assert [d.similarity for d in found[:3]] == [1.0] * 3 and 0.99 <= found[3].similarity < 1


def test_near_duplicates_are_those_of_the_embeddings_that_were_given():
    splits = {"train": some_images(noise(3, 1), prefix="a"), "test": some_images(noise(2, 2), prefix="b")}
    embeddings = {"train": np.eye(3), "test": np.array([[0.0, 1.0, 0.01], [0.5, 0.5, 0.5]])}
    found = n.find_duplicates(splits, embeddings, threshold=0.9)
    assert [(d.id, d.other_id) for d in found] == [("a1", "b0")]
    assert n.find_duplicates(splits, embeddings, threshold=1.01) == ()


def test_pixel_hash_tells_shapes_apart():
    flat = np.zeros((2, 8, 3), np.uint8)
    assert n.pixel_hash(flat) == n.pixel_hash(flat.copy()) != n.pixel_hash(flat.reshape(4, 4, 3))
    assert n.pixel_hash(flat.transpose(1, 0, 2)) != n.pixel_hash(flat)
    changed = flat.copy()
    changed[1, 7, 2] = 1
    assert n.pixel_hash(changed) != n.pixel_hash(flat)


def test_flat_pictures_are_no_near_duplicates_of_each_other():
    flat = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 100, 200)])
    assert n.find_duplicates({"train": some_images(flat[:2]), "test": some_images(flat[2:])}) == ()
