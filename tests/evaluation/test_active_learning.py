"""Which images are chosen to be labelled: uncertain ones, different ones, and better than random ones."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from vitcifar.evaluation.active_learning import select_images, uncertainty


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tight groups of points that are far from each other, and the number of the group of each."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return 100 * rng.normal(size=(len(sizes), 6))[groups] + rng.normal(size=(len(groups), 6)), groups


def ties(count: int) -> np.ndarray:
    return np.full((count, 2), 0.5)


def test_uncertainty_is_one_minus_the_margin_between_the_two_most_likely_classes():
    found = uncertainty(np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.2, 0.7, 0.1]]))
    np.testing.assert_allclose(found, [1, 0, 0.5])


def test_of_equally_uncertain_images_one_of_each_group_is_chosen_that_of_the_largest_first():
    points, groups = blobs([4, 18, 8])
    chosen = select_images(ties(30), points, 3)
    assert groups[chosen].tolist() == [1, 2, 0]


def test_the_images_next_to_the_centre_of_their_group_are_chosen():
    points, groups = blobs([9, 9])
    points[3] = points[groups == 0].mean(axis=0)
    assert 3 in select_images(ties(18), points, 2)


def test_images_that_the_model_is_certain_of_are_left():
    points, groups = blobs([30, 30])
    probabilities = np.where(groups[:, None] == 0, [0.5, 0.5], [0.999, 0.001])
    assert set(groups[select_images(probabilities, points, 3)]) == {0}


@pytest.mark.parametrize("width", [6, 0])
def test_it_chooses_each_image_once_also_without_embeddings_and_of_copies(width):
    points = np.repeat(blobs([4])[0], 10, axis=0)[:, :width]
    probabilities = np.repeat(np.random.default_rng(0).dirichlet(np.ones(3), 4), 10, axis=0)
    for num in (1, 7, 40, 90):
        chosen = select_images(probabilities, points, num)
        assert len(set(chosen.tolist())) == len(chosen) == min(num, 40)
    assert select_images(probabilities[:0], points[:0], 3).tolist() == []


def test_labelling_what_it_chooses_beats_labelling_at_random():
    digits = load_digits()
    images, labels = digits.data / 16, digits.target
    gains = []
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(len(images))
        test, start, pool = order[:800], order[800:830], order[830:]

        def accuracy(train: np.ndarray, test: np.ndarray = test) -> float:
            return float(
                LogisticRegression(max_iter=500).fit(images[train], labels[train]).score(images[test], labels[test])
            )

        first = LogisticRegression(max_iter=500).fit(images[start], labels[start])
        chosen = pool[select_images(first.predict_proba(images[pool]), images[pool], 30, seed=seed)]
        gains.append(accuracy(np.append(start, chosen)) - accuracy(order[800:860]))
    assert np.mean(gains) > 0.03, gains
