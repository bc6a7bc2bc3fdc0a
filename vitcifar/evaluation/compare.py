"""Paired comparison of two classifiers on the same images: better, worse or inconclusive, and the sample size needed.

Only discordant images (exactly one of the two is correct) carry information about the difference.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from vitcifar.errors import DataError
from vitcifar.evaluation.metrics import Evaluation

Outcome = Literal["better", "worse", "inconclusive"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One model against another; differences are the first's minus the second's, as fractions (0.01 = one point)."""

    names: tuple[str, str]  # such as "version 3" and "version 5 (champion)"
    outcome: Outcome
    not_worse: bool  # difference_low is above -margin
    margin: float
    num_images: int
    accuracy: float
    other_accuracy: float
    difference: float
    difference_low: float  # Tango's score interval, which decides the outcome
    difference_high: float
    p_value: float  # McNemar, two-sided
    confidence: float
    power: float
    detectable: float  # the difference that `images_needed` refers to
    images_needed: int  # to call that difference better or worse
    images_needed_not_worse: int  # to show not worse than the margin if both are equally good; 0 = no margin
    gained: tuple[int, ...]  # indices of the images that only the first predicts correctly
    lost: tuple[int, ...]  # and only the second

    def scalars(self) -> dict[str, float]:
        """The metrics by which comparisons are sorted; `to_dict` has all."""
        return {name: getattr(self, name) for name in ("difference", "difference_low", "difference_high", "p_value")}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """The outcome and its numbers in one sentence."""
        text = (
            f"{self.outcome}: accuracy {self.accuracy:.1%} against {self.other_accuracy:.1%} on the same "
            f"{self.num_images:,} images ({100 * self.difference:+.1f} points, {self.confidence:.0%} interval "
            f"{100 * self.difference_low:+.1f} to {100 * self.difference_high:+.1f}, McNemar p = {self.p_value:.2g})"
        )
        if self.outcome == "inconclusive":
            text += (
                f"; detecting a difference of {100 * self.detectable:.1f} points with {self.power:.0%} power "
                f"needs about {self.images_needed:,} images"
            )
        return text


def compare_evaluations(
    evaluation: Evaluation,
    other: Evaluation,
    *,
    margin: float = 0.0,
    detectable: float = 0.01,
    confidence: float = 0.95,
    power: float = 0.8,
    names: tuple[str, str] = ("the first", "the second"),
) -> Comparison:
    """Compare two evaluations of the same images.

    `margin` is the loss of accuracy that still counts as not worse. `detectable` is the smallest difference that
    matters: the sample size is computed for the observed difference or, if that is smaller, for this one. `names` is
    what figures and reports call the two.
    Raises DataError if the two were evaluated on different images.
    """
    if not (evaluation.fingerprint and other.fingerprint):
        raise DataError("An evaluation without a fingerprint of its images cannot be compared: evaluate again.")
    if evaluation.fingerprint != other.fingerprint:
        raise DataError(
            f"The two were evaluated on different images (fingerprints {evaluation.fingerprint[:12]} and "
            f"{other.fingerprint[:12]}): evaluate both on the same --data, --data-dir and --data-seed."
        )
    assert (evaluation.labels == other.labels).all(), "one fingerprint with two sets of labels"
    total = evaluation.num_images
    gained = np.flatnonzero(evaluation.correct & ~other.correct).tolist()
    lost = np.flatnonzero(other.correct & ~evaluation.correct).tolist()
    counts = len(gained), len(lost)
    difference = (len(gained) - len(lost)) / total
    low, high = score_interval(*counts, total, confidence=confidence)
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "inconclusive"
    detectable = max(abs(difference), detectable)
    discordant = sum(counts) / total
    return Comparison(
        names=names,
        outcome=outcome,
        not_worse=low > -margin,
        margin=margin,
        num_images=total,
        accuracy=evaluation.accuracy,
        other_accuracy=other.accuracy,
        difference=difference,
        difference_low=low,
        difference_high=high,
        p_value=mcnemar(*counts),
        confidence=confidence,
        power=power,
        detectable=detectable,
        images_needed=images_needed(discordant, detectable, confidence=confidence, power=power),
        images_needed_not_worse=images_needed_not_worse(discordant, margin, confidence=confidence, power=power),
        gained=tuple(gained),
        lost=tuple(lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of equal accuracy (McNemar 1947, without continuity correction).

    It is below 1 - confidence exactly when `score_interval` excludes 0; closer to its level than the exact test, which
    is conservative (Fagerland et al. 2013).
    """
    if gained + lost == 0:
        return 1.0
    return float(2 * norm.sf(abs(gained - lost) / math.sqrt(gained + lost)))


def score_interval(gained: int, lost: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a difference of paired proportions, valid also without discordant images (Tango 1998)."""
    z = float(norm.ppf((1 + confidence) / 2))
    observed = (gained - lost) / total
    limit = 1 - 1e-12
    low, high = -1.0, 1.0
    if tango(gained, lost, total, -limit) > z:
        low = float(brentq(lambda d: tango(gained, lost, total, d) - z, -limit, observed))
    if tango(gained, lost, total, limit) < -z:
        high = float(brentq(lambda d: tango(gained, lost, total, d) + z, observed, limit))
    return low, high


def tango(gained: int, lost: int, total: int, difference: float) -> float:
    """Tango's score statistic of the hypothesis that the true difference is `difference` (1998, equation 9)."""
    a = 2 * total
    b = -gained - lost + (2 * total - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    lost_share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = total * (2 * lost_share + difference * (1 - difference))
    excess = gained - lost - total * difference
    if variance <= 0:
        return 0.0 if excess == 0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def images_needed(discordant: float, difference: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Images for McNemar's test to detect a difference with this power (Miettinen 1968; Connor 1987).

    `discordant` is the share of images on which exactly one is correct, at least as large as the difference.
    """
    assert difference > 0, difference
    discordant = max(discordant, difference)
    z = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(discordant)
    z += float(norm.ppf(power)) * math.sqrt(discordant - difference**2)
    return math.ceil((z / difference) ** 2)


def images_needed_not_worse(discordant: float, margin: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Images to show "not worse than the margin" for two equally good classifiers (Nam 1997); 0 without a margin."""
    if margin <= 0:
        return 0
    z = float(norm.ppf((1 + confidence) / 2) + norm.ppf(power))
    return math.ceil(max(discordant, margin) * (z / margin) ** 2)
