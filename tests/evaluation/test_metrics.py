"""The scores of a run against scikit-learn, scipy, numbers worked out by hand and published examples."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics

from vitcifar.errors import TrainingError
from vitcifar.evaluation import calibration
from vitcifar.evaluation.metrics import Evaluation, evaluate, metric_names, top_k_accuracy, wilson_interval

NAMES = ("cat", "dog", "frog", "ship")


def some_logits(num_images=300, num_classes=4, signal=1.5, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, num_images)
    logits = random.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += signal
    return logits, labels


def calibrated_logits(num_images, seed=0, num_classes=5):
    """Labels drawn from the softmax of the logits, so that the right temperature is exactly 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_images, num_classes)) * 2
    noise = random.gumbel(size=logits.shape)
    return logits, (logits + noise).argmax(axis=1)


def test_scores_equal_those_of_scikit_learn():
    logits, labels = some_logits()
    result = evaluate(logits, labels, NAMES)
    answers = logits.argmax(axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert result.accuracy == pytest.approx(metrics.accuracy_score(labels, answers))
    assert result.top2_accuracy == pytest.approx(metrics.top_k_accuracy_score(labels, logits, k=2))
    assert result.top3_accuracy == pytest.approx(metrics.top_k_accuracy_score(labels, logits, k=3))
    assert result.loss == pytest.approx(metrics.log_loss(labels, probabilities))
    assert result.f1_macro == pytest.approx(metrics.f1_score(labels, answers, average="macro"))
    assert result.precision_macro == pytest.approx(metrics.precision_score(labels, answers, average="macro"))
    assert result.recall_macro == pytest.approx(metrics.balanced_accuracy_score(labels, answers))
    assert result.confusion.tolist() == metrics.confusion_matrix(labels, answers).tolist()
    one_against_rest = [metrics.brier_score_loss(labels == k, probabilities[:, k]) for k in range(4)]
    assert result.brier == pytest.approx(sum(one_against_rest))
    assert [c.support for c in result.classes] == np.bincount(labels).tolist()


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_gives_the_published_examples(successes, trials, low, high):
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3.
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_equals_scipys(trials, share, confidence):
    successes = round(share * trials)
    theirs = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, trials, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_interval_of_no_pictures_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_ties_count_for_the_first_class_so_that_top_1_is_the_accuracy():
    logits = np.zeros((4, 4))
    labels = np.arange(4)
    assert top_k_accuracy(logits, labels, 1) == (logits.argmax(axis=1) == labels).mean() == 0.25
    assert top_k_accuracy(logits, labels, 3) == 0.75


def test_confused_pairs_are_counted_by_direction_and_the_most_frequent_comes_first():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    answers = np.array([1, 1, 1, 0, 0, 1, 2, 2])
    result = evaluate(np.eye(4)[answers], labels, NAMES)
    assert [(p.label, p.prediction, p.count, p.share) for p in result.confused] == [
        ("cat", "dog", 3, 0.75),
        ("ship", "frog", 1, 1.0),
        ("dog", "cat", 1, 0.5),
    ]


def test_class_without_pictures_is_left_out_of_the_means():
    result = evaluate(np.eye(4)[[0, 1, 1]], np.array([0, 1, 1]), NAMES)
    assert (result.precision_macro, result.recall_macro, result.f1_macro) == (1, 1, 1)
    assert result.classes[3].support == 0 and result.classes[3].recall_high == 1.0


def test_two_classes_have_every_score():
    result = evaluate(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 1]), ("no", "yes"))
    assert result.top2_accuracy == result.top3_accuracy == 1.0


def test_temperature_changes_confidences_and_no_answer():
    logits, labels = some_logits()
    plain, cooled = evaluate(logits, labels, NAMES), evaluate(logits, labels, NAMES, temperature=3.0)
    assert (plain.predictions == cooled.predictions).all()
    assert (plain.confidences > cooled.confidences).all()
    assert plain.loss != cooled.loss


def test_evaluation_survives_json():
    logits, labels = some_logits()
    result = evaluate(logits, labels, NAMES, fingerprint="f00")
    text = json.dumps(result.to_dict(), allow_nan=False)
    again = Evaluation.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.scalars() == result.scalars()
    assert (again.correct == result.correct).all() and again.classes == result.classes


def test_scalars_are_finite_floats_with_flat_names():
    logits, labels = some_logits()
    scalars = evaluate(logits, labels, NAMES).scalars()
    assert {"accuracy", "accuracy_low", "accuracy_high", "top2_accuracy", "f1_macro", "loss", "ece"} <= set(scalars)
    assert {"recall/cat", "precision/ship", "f1/dog"} <= set(scalars)
    assert all(type(value) is float and np.isfinite(value) for value in scalars.values())


def test_metric_names_of_odd_classes_stay_apart():
    names = metric_names(["a/b", "a:b", "..", "ünder", "", "ok"])
    assert len(set(names)) == 6 and names[3] == "ünder" and names[5] == "ok"
    assert not any(set(name) & set("/:") or name in ("", ".", "..") for name in names)


def test_logits_that_are_not_finite_are_refused_with_their_number():
    logits, labels = some_logits()
    logits[3, 1], logits[7, 0] = np.nan, np.inf
    with pytest.raises(TrainingError, match="2 of 300"):
        evaluate(logits, labels, NAMES)


# Calibration


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 20.0])
def test_fitted_temperature_is_the_one_that_the_logits_were_multiplied_by(temperature):
    logits, labels = calibrated_logits(20_000)
    assert calibration.fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 4))
def test_fitted_temperature_is_at_the_bottom_of_the_loss(seed, scale):
    logits, labels = some_logits(80, seed=seed)
    logits *= scale
    best = calibration.fit_temperature(logits, labels)
    loss = calibration.nll(logits, labels, best)
    for factor in (0.5, 0.97, 1.03, 2.0):
        assert calibration.nll(logits, labels, best * factor) >= loss - 1e-9


def test_nothing_is_learned_about_temperature_when_every_answer_is_right():
    labels = np.array([0, 1, 2])
    assert calibration.fit_temperature(np.eye(3) * 5, labels) == 1.0


def test_calibration_error_worked_out_by_hand():
    # Two bins are filled: (0.5, 0.6] with two of two right at 0.55, (0.9, 1] with three of four right at 0.95.
    confidences = np.array([0.55, 0.55, 0.95, 0.95, 0.95, 0.95])
    correct = np.array([1, 1, 1, 1, 1, 0], bool)
    expected = 2 / 6 * (1 - 0.55) + 4 / 6 * (0.95 - 0.75)
    assert calibration.ece(confidences, correct, num_bins=10) == pytest.approx(expected)
    filled = [b for b in calibration.reliability_bins(confidences, correct, 10) if b.count]
    assert [(round(b.low, 9), b.count, b.accuracy) for b in filled] == [(0.5, 2, 1.0), (0.9, 4, 0.75)]


def test_confidence_on_an_edge_belongs_to_the_bin_below():
    bins = calibration.reliability_bins(np.array([0.0, 0.5, 1.0]), np.ones(3, bool), 2)
    assert [b.count for b in bins] == [2, 1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_every_picture_is_in_one_bin(answers):
    confidences, correct = map(np.array, zip(*answers, strict=True))
    bins = calibration.reliability_bins(confidences, correct)
    assert sum(b.count for b in bins) == len(answers)
    assert all(b.low - 1e-12 <= b.confidence <= b.high + 1e-12 for b in bins if b.count)


def test_calibrated_answers_have_a_small_error_and_overconfident_ones_a_large_one():
    logits, labels = calibrated_logits(20_000)
    good = evaluate(logits, labels, "abcde")
    bad = evaluate(logits * 3, labels, "abcde")
    mended = evaluate(logits * 3, labels, "abcde", temperature=calibration.fit_temperature(logits * 3, labels))
    assert good.ece < 0.015 < 0.1 < bad.ece
    assert mended.ece < 0.015 and mended.loss < bad.loss and mended.brier < bad.brier


# Answering only when sure


def test_risk_coverage_worked_out_by_hand():
    confidences = np.array([0.9, 0.8, 0.7, 0.6])
    correct = np.array([True, False, True, False])
    coverage, risk = calibration.risk_coverage(confidences, correct)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert calibration.aurc(confidences, correct) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert calibration.best_aurc(correct) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40), st.randoms())
def test_area_does_not_depend_on_the_order_of_the_pictures(answers, random):
    shuffled = list(answers)
    random.shuffle(shuffled)
    areas = [calibration.aurc(*map(np.array, zip(*rows, strict=True))) for rows in (answers, shuffled)]
    assert areas[0] == pytest.approx(areas[1])
    correct = np.array([right for _, right in answers])
    assert calibration.best_aurc(correct) <= areas[0] + 1e-12


def test_threshold_is_the_lowest_confidence_that_keeps_the_precision():
    confidences = np.array([0.95, 0.9, 0.8, 0.7, 0.7, 0.5])
    correct = np.array([1, 1, 0, 1, 1, 0], bool)
    found = calibration.fit_threshold(confidences, correct, 0.8)
    assert (found.confidence, found.num_answered, found.precision) == (0.7, 5, 0.8)
    assert found.coverage == pytest.approx(5 / 6)
    assert (found.precision_low, found.precision_high) == wilson_interval(4, 5)
    strict = calibration.fit_threshold(confidences, correct, 1.0)
    assert (strict.confidence, strict.num_answered) == (0.9, 2)


def test_threshold_does_not_split_pictures_of_one_confidence():
    confidences, correct = np.array([0.7, 0.7, 0.7]), np.array([True, True, False])
    assert calibration.fit_threshold(confidences, correct, 0.9) is None


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 1))
def test_threshold_reaches_its_target_where_it_was_chosen(seed, target):
    logits, labels = some_logits(60, signal=1, seed=seed)
    result = evaluate(logits, labels, NAMES)
    found = calibration.fit_threshold(result.confidences, result.correct, target)
    lower = [c for c in result.confidences if found is None or c < found.confidence]
    assert found is None or found.precision >= target
    for confidence in lower:
        assert result.correct[result.confidences >= confidence].mean() < target
