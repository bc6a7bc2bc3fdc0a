"""Likely label errors: the method by hand, against the authors' own code, and on digits with flipped labels."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vitcifar.errors import DataError
from vitcifar.evaluation.label_errors import cross_validated_probabilities, find_label_errors

NUM = 400


@pytest.fixture(scope="module")
def digits():
    """Pixels and labels of digits, the indices of labels that were flipped, and predictions out of sample."""
    pixels, labels = load_digits(return_X_y=True)
    flipped, random = labels[:NUM].copy(), np.random.default_rng(0)
    indices = random.choice(NUM, 20, replace=False)
    flipped[indices] = (flipped[indices] + random.integers(1, 10, 20)) % 10
    return pixels[:NUM], flipped, indices, cross_validated_probabilities(pixels[:NUM], flipped)


def test_most_flipped_labels_of_digits_are_found_and_most_found_ones_are_flipped(digits):
    _, labels, flipped, probabilities = digits
    found = find_label_errors(labels, probabilities)
    assert np.isin(flipped, found).mean() >= 0.8
    assert np.isin(found, flipped).mean() >= 0.7
    assert np.isin(found[:10], flipped).all(), "the most certain ones come first"


def test_the_labels_of_clean_digits_raise_few():
    pixels, labels = load_digits(return_X_y=True)
    assert len(find_label_errors(labels[:NUM], cross_validated_probabilities(pixels[:NUM], labels[:NUM]))) <= 4


def test_predictions_are_made_for_images_that_were_not_learned_from():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(60, 200)), np.arange(60) % 2  # any labels can be learned, none predicted
    probabilities = cross_validated_probabilities(features, labels)
    assert probabilities.shape == (60, 2) and probabilities.sum(axis=1) == pytest.approx(np.ones(60))
    assert 0.2 <= (probabilities.argmax(axis=1) == labels).mean() <= 0.8


def test_a_class_of_one_image_is_an_error_that_says_what_is_needed():
    with pytest.raises(DataError, match="at least 2 images of each class"):
        cross_validated_probabilities(np.eye(3), np.array([0, 0, 1]))


def test_label_errors_worked_out_by_hand():
    # Mean self-confidence: (0.9 + 0.8 + 0.1) / 3 = 0.6 of class 0, (0.7 + 0.6 + 0.5) / 3 = 0.6 of class 1. So image 2
    # counts for class 1; of 3 labels of class 0 one is wrong by estimate, of class 1 none.
    labels = np.array([0, 0, 0, 1, 1, 1])
    own = np.array([0.9, 0.8, 0.1, 0.7, 0.6, 0.5])
    probabilities = np.where(np.eye(2)[labels] == 1, own[:, None], 1 - own[:, None])
    assert find_label_errors(labels, probabilities).tolist() == [2]
    assert find_label_errors(1 - labels, probabilities[:, ::-1]).tolist() == [2]


def test_a_class_without_an_image_and_predictions_that_agree_have_no_errors():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3]])
    assert not len(find_label_errors(labels, probabilities))
    assert not len(find_label_errors(np.array([0]), np.array([[0.4, 0.6]]))), "one image of a class is always kept"


def test_the_labels_that_are_found_are_those_of_cleanlab_but_for_one_of_a_class_by_rounding(digits):
    theirs = pytest.importorskip("cleanlab.filter")
    _, labels, _, probabilities = digits
    noisy = 0.5 * probabilities + 0.5 * np.random.default_rng(1).dirichlet(np.ones(10), NUM)
    for predicted in (probabilities, noisy):
        ranked = theirs.find_label_issues(
            labels, predicted, filter_by="prune_by_class", return_indices_ranked_by="self_confidence", n_jobs=1
        )
        ours = find_label_errors(labels, predicted)
        both = np.intersect1d(ours, ranked)
        assert np.bincount(labels[np.setxor1d(ours, ranked)], minlength=10).max() <= 1
        assert len(both) >= 15 and ours[np.isin(ours, both)].tolist() == ranked[np.isin(ranked, both)].tolist()
