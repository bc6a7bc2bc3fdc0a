"""Comparing two versions: published examples, scipy, simulation, and the three outcomes."""

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
    """An evaluation of two classes that is right exactly where told."""
    correct = np.asarray(correct, bool)
    labels = np.arange(len(correct)) % 2
    answers = np.where(correct, labels, 1 - labels)
    return evaluate(np.eye(2)[answers], labels, ("no", "yes"), fingerprint=fingerprint)


def pair(gained, lost, both, neither=0):
    challenger = [1] * gained + [0] * lost + [1] * both + [0] * neither
    champion = [0] * gained + [1] * lost + [1] * both + [0] * neither
    return scored(challenger), scored(champion)


def test_mcnemar_gives_the_published_example():
    # Fagerland, Lydersen & Laake 2013: airway hyper-responsiveness, 1 against 7 discordant pairs.
    assert c.mcnemar(1, 7) == pytest.approx(0.0703125)
    assert c.mcnemar(7, 1) == c.mcnemar(1, 7)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_twice_the_binomial_tail(gained, lost):
    total = gained + lost
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1)) / 2**total
    assert c.mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))


def test_score_statistic_gives_the_published_example():
    # Tango 1998, section 5: 44 patients, one discordant pair against the new treatment, margin 0.1.
    assert c.tango(0, 1, 44, -0.1) == pytest.approx(1.709, abs=5e-4)
    assert norm.sf(c.tango(0, 1, 44, -0.1)) == pytest.approx(0.044, abs=5e-4)


@pytest.mark.parametrize("total", [1, 10, 100, 10_000])
def test_score_interval_of_two_that_never_differ_is_as_wide_as_the_number_of_pictures_says(total):
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


def test_bootstrap_of_counts_equals_drawing_the_pictures_themselves():
    challenger, champion = pair(30, 12, 150, 8)
    random = np.random.default_rng(1)
    change = challenger.correct.astype(int) - champion.correct.astype(int)
    drawn = change[random.integers(0, 200, size=(10_000, 200))].mean(axis=1)
    ours = c.bootstrap_interval(30, 12, 200)
    assert ours == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.006)
    assert ours == c.bootstrap_interval(30, 12, 200)  # the same each time


def test_a_clearly_better_version_is_better_and_the_other_way_round_worse():
    better, worse = pair(30, 8, 160, 52)
    found = c.compare_evaluations(better, worse)
    assert found.outcome == "better" and found.bootstrap_low > 0 and found.score_low > 0
    assert found.difference == pytest.approx(22 / 250)
    assert (found.only_challenger_right, found.only_champion_right) == (30, 8)
    assert found.gained == tuple(range(30)) and found.lost == tuple(range(30, 38))
    turned = c.compare_evaluations(worse, better)
    assert turned.outcome == "worse" and turned.difference == -found.difference
    assert found.summary().startswith("better: 76.0% against 67.2%")


def test_a_difference_that_chance_explains_is_not_enough_evidence():
    found = c.compare_evaluations(*pair(12, 5, 200))  # McNemar's p is 0.14
    assert found.outcome == "inconclusive" and found.p_value == pytest.approx(0.143, abs=5e-4)
    assert found.detectable == pytest.approx(7 / 217)
    assert c.compare_evaluations(*pair(12, 5, 200), confidence=0.8).outcome == "better"


def test_a_tie_is_not_enough_evidence_and_says_how_many_pictures_it_would_take():
    found = c.compare_evaluations(*pair(6, 6, 200, 38))
    assert found.outcome == "inconclusive"
    assert found.detectable == 0.01 and found.images_needed == c.images_needed(12 / 250, 0.01)
    assert f"about {found.images_needed:,} images" in found.summary()


def test_two_equal_versions_are_not_enough_evidence_however_many_pictures():
    found = c.compare_evaluations(*pair(0, 0, 5000))
    assert (found.outcome, found.p_value, found.difference) == ("inconclusive", 1.0, 0.0)
    assert found.images_needed > 0


def test_not_worse_needs_enough_pictures_even_when_no_answer_differs():
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
    found = c.compare_evaluations(*pair(40, 80, 9880), margin=0.01)
    assert found.outcome == "worse" and found.not_worse


def test_connors_formula_worked_out_by_hand():
    # discordant 0.2, difference 0.1: ((1.959964 sqrt(0.2) + 0.841621 sqrt(0.19)) / 0.1)^2 = 154.6...
    expected = ((1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.19)) / 0.1) ** 2
    assert c.images_needed(0.2, 0.1) == math.ceil(expected) == 155


def test_as_many_pictures_as_told_show_the_difference_as_often_as_told():
    gain, loss = 0.09, 0.05
    total = c.images_needed(gain + loss, gain - loss)
    draws = np.random.default_rng(0).multinomial(total, [gain, loss, 1 - gain - loss], size=2000)
    power = np.mean([c.mcnemar(int(g), int(b)) < 0.05 for g, b, _ in draws])
    assert 0.76 < power < 0.84  # the exact test is a little below the formula's 0.8


def test_as_many_pictures_as_told_show_not_worse_as_often_as_told():
    total = c.images_needed_not_worse(0.1, 0.03)
    draws = np.random.default_rng(0).multinomial(total, [0.05, 0.05, 0.9], size=2000)
    shown = np.mean([c.tango(int(g), int(b), total, -0.03) > norm.ppf(0.975) for g, b, _ in draws])
    assert 0.76 < shown < 0.84


def test_equal_versions_are_seldom_called_different():
    draws = np.random.default_rng(0).multinomial(500, [0.05, 0.05, 0.9], size=2000)
    assert np.mean([c.mcnemar(int(g), int(b)) < 0.05 for g, b, _ in draws]) < 0.05


def test_different_pictures_are_refused_with_both_fingerprints():
    with pytest.raises(DataError, match=r"aaaa.*bbbb"):
        c.compare_evaluations(scored([1, 0, 1], "aaaa"), scored([1, 1, 1], "bbbb"))


def test_scores_without_a_fingerprint_are_refused():
    with pytest.raises(DataError, match="which images"):
        c.compare_evaluations(scored([1, 0, 1], ""), scored([1, 1, 1], ""))


def test_comparison_is_json():
    found = c.compare_evaluations(*pair(3, 1, 20))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["outcome"] == found.outcome
