"""Calibration, confidence threshold and intervals: published examples and numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.logits import calibrated_logits, some_logits

from vitcifar.evaluation import calibration as c
from vitcifar.evaluation.metrics import evaluate

NAMES = ("cat", "dog", "frog", "ship")


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_gives_the_published_examples(successes, trials, low, high):
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3.
    assert c.wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_without_trials_is_0_to_1():
    assert c.wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 20.0])
def test_fitted_temperature_is_the_factor_of_the_logits(temperature):
    logits, labels = calibrated_logits(20_000)
    assert c.fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 4))
def test_fitted_temperature_minimises_the_loss(seed, scale):
    logits, labels = some_logits(80, seed=seed)
    logits *= scale
    best = c.fit_temperature(logits, labels)
    loss = c.nll(logits, labels, best)
    for factor in (0.5, 0.97, 1.03, 2.0):
        assert c.nll(logits, labels, best * factor) >= loss - 1e-9


@pytest.mark.parametrize("scale", [0.5, 30.0])
def test_if_every_prediction_is_correct_the_temperature_minimises_the_loss_of_platts_targets(scale):
    logits, labels = calibrated_logits(400)
    logits[np.arange(400), labels] = logits.max(axis=1) + 0.1  # all correct, but far from confident
    targets = np.full((400, 5), 1 / 402 / 4)
    targets[np.arange(400), labels] = 401 / 402

    def loss(temperature):
        return -(targets * np.log(c.softmax(logits * scale, temperature))).sum(axis=1).mean()

    best = c.fit_temperature(logits * scale, labels)
    assert all(loss(best) < loss(best * factor) for factor in (0.5, 0.97, 1.03, 2.0))


def test_a_perfect_model_that_is_not_confident_becomes_calibrated():
    """Seen before: accuracy 1 with a calibration error of 0.62, since the temperature stayed 1."""
    labels = np.arange(250) % 10
    logits = np.eye(10)[labels] * 1.6 + np.random.default_rng(0).normal(0, 0.05, (250, 10))
    raw, scaled = (
        evaluate(logits, labels, "abcdefghij", temperature=t) for t in (1.0, c.fit_temperature(logits, labels))
    )
    assert raw.accuracy == 1 and raw.ece > 0.6
    assert scaled.ece < 0.01 and scaled.confidences.mean() == pytest.approx(251 / 252, abs=1e-3)


def test_calibration_error_worked_out_by_hand():
    # Two bins are filled: (0.5, 0.6] with two of two correct at 0.55, (0.9, 1] with three of four correct at 0.95.
    confidences = np.array([0.55, 0.55, 0.95, 0.95, 0.95, 0.95])
    correct = np.array([1, 1, 1, 1, 1, 0], bool)
    expected = 2 / 6 * (1 - 0.55) + 4 / 6 * (0.95 - 0.75)
    assert c.ece(confidences, correct, num_bins=10) == pytest.approx(expected)
    filled = [b for b in c.reliability_bins(confidences, correct, 10) if b.count]
    assert [(round(b.low, 9), b.count, b.accuracy) for b in filled] == [(0.5, 2, 1.0), (0.9, 4, 0.75)]


def test_confidence_on_an_edge_belongs_to_the_bin_below():
    bins = c.reliability_bins(np.array([0.0, 0.5, 1.0]), np.ones(3, bool), 2)
    assert [b.count for b in bins] == [2, 1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_every_image_is_in_one_bin(rows):
    confidences, correct = map(np.array, zip(*rows, strict=True))
    bins = c.reliability_bins(confidences, correct)
    assert sum(b.count for b in bins) == len(rows)
    assert all(b.low - 1e-12 <= b.confidence <= b.high + 1e-12 for b in bins if b.count)


def test_calibrated_confidences_have_a_small_error_and_overconfident_ones_a_large_one():
    logits, labels = calibrated_logits(20_000)
    good = evaluate(logits, labels, "abcde")
    bad = evaluate(logits * 3, labels, "abcde")
    scaled = evaluate(logits * 3, labels, "abcde", temperature=c.fit_temperature(logits * 3, labels))
    assert good.ece < 0.015 < 0.1 < bad.ece
    assert scaled.ece < 0.015 and scaled.loss < bad.loss and scaled.brier < bad.brier


# Confidence threshold


def test_risk_coverage_worked_out_by_hand():
    confidences = np.array([0.9, 0.8, 0.7, 0.6])
    correct = np.array([True, False, True, False])
    coverage, risk = c.risk_coverage(confidences, correct)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert c.aurc(confidences, correct) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert c.best_aurc(correct) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40), st.randoms())
def test_the_risk_coverage_area_does_not_depend_on_the_order_of_the_images(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    areas = [c.aurc(*map(np.array, zip(*rows, strict=True))) for rows in (rows, shuffled)]
    assert areas[0] == pytest.approx(areas[1])
    correct = np.array([right for _, right in rows])
    assert c.best_aurc(correct) <= areas[0] + 1e-12


def test_the_threshold_is_the_lowest_confidence_that_reaches_the_precision():
    confidences = np.array([0.95, 0.9, 0.8, 0.7, 0.7, 0.5])
    correct = np.array([1, 1, 0, 1, 1, 0], bool)
    threshold = c.fit_threshold(confidences, correct, 0.8)
    assert (threshold.confidence, threshold.num_answered, threshold.precision) == (0.7, 5, 0.8)
    assert threshold.coverage == pytest.approx(5 / 6)
    assert (threshold.precision_low, threshold.precision_high) == c.wilson_interval(4, 5)
    strict = c.fit_threshold(confidences, correct, 1.0)
    assert (strict.confidence, strict.num_answered) == (0.9, 2)


def test_the_threshold_does_not_split_images_of_equal_confidence():
    confidences, correct = np.array([0.7, 0.7, 0.7]), np.array([True, True, False])
    assert c.fit_threshold(confidences, correct, 0.9) is None


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 1))
def test_the_threshold_reaches_its_target_on_the_data_it_was_chosen_on(seed, target):
    logits, labels = some_logits(60, signal=1, seed=seed)
    result = evaluate(logits, labels, NAMES)
    threshold = c.fit_threshold(result.confidences, result.correct, target)
    lower = [c for c in result.confidences if threshold is None or c < threshold.confidence]
    assert threshold is None or threshold.precision >= target
    for confidence in lower:
        assert result.correct[result.confidences >= confidence].mean() < target


def test_a_target_out_of_reach_gives_no_threshold_and_target_0_gives_threshold_0():
    confidences, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
    assert (
        c.choose_threshold(confidences, correct, 0.95) == 0.8 == c.fit_threshold(confidences, correct, 0.95).confidence
    )
    assert c.choose_threshold(confidences, correct, 0.0) == 0.0
    assert c.choose_threshold(confidences, ~correct, 0.95) is None
    assert 0.999 < c.choose_threshold(np.ones(2), np.array([True, True]), 0.95) < 1  # 1 was "never" in vitcifar 0.1


def test_without_a_threshold_no_prediction_is_confident_not_even_one_of_probability_1():
    result = c.apply_threshold(np.array([1.0, 0.4]), np.array([True, False]), None, 0.95)
    assert (result.text, result.num_answered, result.coverage) == ("never confident", 0, 0.0)
