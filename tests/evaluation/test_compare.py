"""Paired comparison: published examples, simulation, and the three outcomes."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from vitcifar.errors import DataError
from vitcifar.evaluation import compare as c
from vitcifar.evaluation.metrics import evaluate


def scored(correct, fingerprint="f00d"):
    """An evaluation of two classes, correct exactly where `correct` is true."""
    correct = np.asarray(correct, bool)
    labels = np.arange(len(correct)) % 2
    predictions = np.where(correct, labels, 1 - labels)
    return evaluate(np.eye(2)[predictions], labels, ("no", "yes"), fingerprint=fingerprint)


def pair(gained, lost, both, neither=0):
    first = [1] * gained + [0] * lost + [1] * both + [0] * neither
    second = [0] * gained + [1] * lost + [1] * both + [0] * neither
    return scored(first), scored(second)


def test_mcnemar_gives_the_published_example():
    # Fagerland, Lydersen & Laake 2013: airway hyper-responsiveness, 1 against 7 discordant pairs.
    assert c.mcnemar(1, 7) == pytest.approx(0.0339, abs=5e-5)  # asymptotic
    assert c.mcnemar(7, 1) == c.mcnemar(1, 7)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 200))
def test_the_test_and_the_interval_always_agree(gained, lost, rest):
    low, high = c.score_interval(gained, lost, gained + lost + rest)
    assert (c.mcnemar(gained, lost) < 0.05) == (low > 0 or high < 0)
    comparison = c.compare_evaluations(*pair(gained, lost, rest))
    assert comparison.outcome == ("better" if low > 0 else "worse" if high < 0 else "inconclusive")


def test_score_statistic_gives_the_published_example():
    # Tango 1998, section 5: 44 patients, one discordant pair against the new treatment, margin 0.1.
    assert c.tango(0, 1, 44, -0.1) == pytest.approx(1.709, abs=5e-4)
    assert norm.sf(c.tango(0, 1, 44, -0.1)) == pytest.approx(0.044, abs=5e-4)


@pytest.mark.parametrize("total", [1, 10, 100, 10_000])
def test_score_interval_without_discordant_images_depends_on_the_number_of_images(total):
    z = norm.ppf(0.975) ** 2
    assert c.score_interval(0, 0, total) == pytest.approx((-z / (total + z), z / (total + z)))


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 200))
def test_score_interval_is_where_the_statistic_reaches_its_limits(gained, lost, rest):
    total = gained + lost + rest
    low, high = c.score_interval(gained, lost, total)
    assert -1 <= low < (gained - lost) / total < high <= 1
    assert c.tango(gained, lost, total, low) == pytest.approx(norm.ppf(0.975), abs=1e-6)
    assert c.tango(gained, lost, total, high) == pytest.approx(norm.ppf(0.025), abs=1e-6)
    mirrored = c.score_interval(lost, gained, total)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)


def test_the_interval_that_decides_not_worse_is_the_one_in_the_summary_and_the_metrics():
    comparison = c.compare_evaluations(*pair(6, 9, 185), margin=0.03)
    low, high = c.score_interval(6, 9, 200)
    assert (comparison.difference_low, comparison.difference_high) == (low, high)
    assert comparison.not_worse == (low > -0.03)
    assert f"95% interval {100 * low:+.1f} to {100 * high:+.1f}" in comparison.summary()
    assert comparison.scalars()["difference_low"] == low and comparison.to_dict()["difference_high"] == high


def test_a_clearly_better_version_is_better_and_the_other_way_round_worse():
    better, worse = pair(30, 8, 160, 52)
    comparison = c.compare_evaluations(better, worse)
    assert comparison.outcome == "better" and comparison.difference_low > 0
    assert comparison.difference == pytest.approx(22 / 250)
    assert (len(comparison.gained), len(comparison.lost)) == (30, 8)
    assert comparison.gained == tuple(range(30)) and comparison.lost == tuple(range(30, 38))
    turned = c.compare_evaluations(worse, better)
    assert turned.outcome == "worse" and turned.difference == -comparison.difference
    assert comparison.summary().startswith(
        "better: accuracy 76.0% against 67.2% on the same 250 images (+8.8 points, 95% interval"
    )


def test_a_difference_within_chance_is_inconclusive():
    comparison = c.compare_evaluations(*pair(12, 5, 200))  # McNemar's p is 0.09
    assert comparison.outcome == "inconclusive" and comparison.p_value == pytest.approx(0.0896, abs=5e-4)
    assert comparison.detectable == pytest.approx(7 / 217)
    assert c.compare_evaluations(*pair(12, 5, 200), confidence=0.8).outcome == "better"


def test_a_tie_is_inconclusive_and_the_summary_has_the_sample_size_needed():
    comparison = c.compare_evaluations(*pair(6, 6, 200, 38))
    assert comparison.outcome == "inconclusive"
    assert comparison.detectable == 0.01 and comparison.images_needed == c.images_needed(12 / 250, 0.01)
    assert (
        f"detecting a difference of 1.0 points with 80% power needs about {comparison.images_needed:,} images"
        in comparison.summary()
    )


def test_two_equal_versions_are_inconclusive_for_any_number_of_images():
    comparison = c.compare_evaluations(*pair(0, 0, 5000))
    assert (comparison.outcome, comparison.p_value, comparison.difference) == ("inconclusive", 1.0, 0.0)
    assert comparison.images_needed > 0


def test_not_worse_needs_enough_images_even_without_discordant_ones():
    few, many = (
        c.compare_evaluations(*pair(0, 0, 30), margin=0.02),
        c.compare_evaluations(*pair(0, 0, 300), margin=0.02),
    )
    assert not few.not_worse and many.not_worse
    assert few.images_needed_not_worse > 30


def test_without_a_margin_only_a_better_version_is_not_worse():
    assert not c.compare_evaluations(*pair(6, 6, 200)).not_worse
    assert c.compare_evaluations(*pair(20, 2, 200)).not_worse


def test_a_worse_version_within_the_margin_is_not_worse():
    comparison = c.compare_evaluations(*pair(40, 80, 9880), margin=0.01)
    assert comparison.outcome == "worse" and comparison.not_worse


def test_connors_formula_worked_out_by_hand():
    # discordant 0.2, difference 0.1: ((1.959964 sqrt(0.2) + 0.841621 sqrt(0.19)) / 0.1)^2 = 154.6...
    expected = ((1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.19)) / 0.1) ** 2
    assert c.images_needed(0.2, 0.1) == math.ceil(expected) == 155


def test_the_sample_size_detects_the_difference_with_the_stated_power():
    gain, loss = 0.09, 0.05
    total = c.images_needed(gain + loss, gain - loss)
    draws = np.random.default_rng(0).multinomial(total, [gain, loss, 1 - gain - loss], size=2000)
    power = np.mean([c.mcnemar(int(g), int(b)) < 0.05 for g, b, _ in draws])
    assert 0.76 < power < 0.84


def test_the_sample_size_shows_not_worse_with_the_stated_power():
    total = c.images_needed_not_worse(0.1, 0.03)
    draws = np.random.default_rng(0).multinomial(total, [0.05, 0.05, 0.9], size=2000)
    shown = np.mean([c.tango(int(g), int(b), total, -0.03) > norm.ppf(0.975) for g, b, _ in draws])
    assert 0.76 < shown < 0.84


def test_equal_versions_are_called_different_in_about_5_percent():
    draws = np.random.default_rng(0).multinomial(500, [0.05, 0.05, 0.9], size=2000)
    assert 0.04 < np.mean([c.mcnemar(int(g), int(b)) < 0.05 for g, b, _ in draws]) < 0.06


def test_evaluations_of_different_images_are_rejected_with_both_fingerprints():
    with pytest.raises(DataError, match=r"aaaa.*bbbb.*--data, --data-dir and --data-seed"):
        c.compare_evaluations(scored([1, 0, 1], "aaaa"), scored([1, 1, 1], "bbbb"))


def test_an_evaluation_without_a_fingerprint_is_rejected():
    with pytest.raises(DataError, match="without a fingerprint"):
        c.compare_evaluations(scored([1, 0, 1], ""), scored([1, 1, 1], ""))


def test_a_comparison_converts_to_json():
    comparison = c.compare_evaluations(*pair(3, 1, 20))
    assert json.loads(json.dumps(comparison.to_dict(), allow_nan=False))["outcome"] == comparison.outcome
