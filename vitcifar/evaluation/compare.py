"""Two classifiers on the same images: better, worse or inconclusive, and how many images it would take.

Only images on which exactly one of the two is right can tell them apart; the rest cancel out.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from vitcifar.errors import DataError
from vitcifar.evaluation.metrics import Evaluation

Outcome = Literal["better", "worse", "inconclusive"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A challenger against a champion; differences are challenger minus champion, in shares (0.01 = one point)."""

    outcome: Outcome
    not_worse: bool  # the whole score interval lies above -margin
    margin: float
    num_images: int
    accuracy: float
    champion_accuracy: float
    difference: float
    p_value: float  # McNemar, exact, two-sided
    bootstrap_low: float
    bootstrap_high: float
    score_low: float
    score_high: float
    confidence: float
    power: float
    detectable: float  # the difference that `images_needed` is for
    images_needed: int  # to call that difference better or worse
    images_needed_not_worse: int  # to show not worse than the margin, if the two are equally good; 0 = no margin
    gained: tuple[int, ...]  # places of the images that only the challenger got right
    lost: tuple[int, ...]  # and only the champion

    @property
    def only_challenger_right(self) -> int:
        return len(self.gained)

    @property
    def only_champion_right(self) -> int:
        return len(self.lost)

    def scalars(self) -> dict[str, float]:
        """Every number by its name."""
        return {f.name: float(getattr(self, f.name)) for f in dataclasses.fields(self) if f.type in (int, float)}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """The verdict with its numbers, in plain words."""
        text = (
            f"{self.outcome}: {self.accuracy:.1%} against {self.champion_accuracy:.1%} right on the same "
            f"{self.num_images:,} images ({100 * self.difference:+.1f} points, {self.confidence:.0%} interval "
            f"{100 * self.bootstrap_low:+.1f} to {100 * self.bootstrap_high:+.1f}, McNemar p = {self.p_value:.2g})"
        )
        if self.outcome == "inconclusive":
            text += (
                f"; to show a difference of {100 * self.detectable:.1f} points with a chance of {self.power:.0%} "
                f"it takes about {self.images_needed:,} images"
            )
        return text


def compare_evaluations(
    challenger: Evaluation,
    champion: Evaluation,
    *,
    margin: float = 0.0,
    detectable: float = 0.01,
    confidence: float = 0.95,
    power: float = 0.8,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations of the same images.

    `margin` is the loss of accuracy that would still count as not worse. `detectable` is the smallest difference
    that matters: images_needed is told for the observed difference, or for this one where the observed is smaller.
    Raises DataError when the two were not scored on the same images.
    """
    _same_images(challenger, champion)
    total = challenger.num_images
    gained_places = np.flatnonzero(challenger.correct & ~champion.correct)
    lost_places = np.flatnonzero(champion.correct & ~challenger.correct)
    gained, lost = len(gained_places), len(lost_places)
    difference = (gained - lost) / total
    p_value = mcnemar(gained, lost)
    outcome: Outcome = "inconclusive"
    if p_value < 1 - confidence:
        outcome = "better" if gained > lost else "worse"
    bootstrap = bootstrap_interval(gained, lost, total, confidence=confidence, seed=seed)
    score = score_interval(gained, lost, total, confidence=confidence)
    wanted = max(abs(difference), detectable)
    discordant = (gained + lost) / total
    return Comparison(
        outcome=outcome,
        not_worse=score[0] > -margin,
        margin=margin,
        num_images=total,
        accuracy=challenger.accuracy,
        champion_accuracy=champion.accuracy,
        difference=difference,
        p_value=p_value,
        bootstrap_low=bootstrap[0],
        bootstrap_high=bootstrap[1],
        score_low=score[0],
        score_high=score[1],
        confidence=confidence,
        power=power,
        detectable=wanted,
        images_needed=images_needed(discordant, wanted, confidence=confidence, power=power),
        images_needed_not_worse=images_needed_not_worse(discordant, margin, confidence=confidence, power=power),
        gained=tuple(gained_places.tolist()),
        lost=tuple(lost_places.tolist()),
    )


def _same_images(challenger: Evaluation, champion: Evaluation) -> None:
    for evaluation in (challenger, champion):
        if not evaluation.fingerprint:
            raise DataError(
                "These scores do not say which images they are of, so they cannot be compared: evaluate again."
            )
    if challenger.fingerprint != champion.fingerprint:
        raise DataError(
            f"The two were scored on different images (fingerprints {challenger.fingerprint[:12]} and "
            f"{champion.fingerprint[:12]}), so they cannot be compared: evaluate both on the same --data and --seed."
        )
    assert (challenger.labels == champion.labels).all(), "one fingerprint with two sets of labels"


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that neither of the two is right more often (McNemar 1947; binomial form)."""
    if gained + lost == 0:
        return 1.0
    return float(binomtest(min(gained, lost), gained + lost, 0.5).pvalue)


def bootstrap_interval(
    gained: int, lost: int, total: int, *, confidence: float = 0.95, num_draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the accuracy difference, images drawn again in pairs (Efron & Tibshirani 1993).

    Only the three counts matter, so a draw of images is a draw from their multinomial distribution.
    """
    shares = np.array([gained, lost, total - gained - lost]) / total
    drawn = np.random.default_rng(seed).multinomial(total, shares, size=num_draws)  # (draws, 3)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / total, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def score_interval(gained: int, lost: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a difference of paired shares, honest also when the two never differ (Tango 1998)."""
    z = float(norm.ppf((1 + confidence) / 2))
    observed = (gained - lost) / total
    edge = 1 - 1e-12
    low, high = -1.0, 1.0
    if tango(gained, lost, total, -edge) > z:
        low = float(brentq(lambda d: tango(gained, lost, total, d) - z, -edge, observed))
    if tango(gained, lost, total, edge) < -z:
        high = float(brentq(lambda d: tango(gained, lost, total, d) + z, observed, edge))
    return low, high


def tango(gained: int, lost: int, total: int, difference: float) -> float:
    """Tango's score statistic of the hypothesis that the true difference is this one (1998, equation 9)."""
    a = 2 * total
    b = -gained - lost + (2 * total - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    lost_share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = total * (2 * lost_share + difference * (1 - difference))
    surplus = gained - lost - total * difference
    if variance <= 0:
        return 0.0 if surplus == 0 else math.copysign(math.inf, surplus)
    return surplus / math.sqrt(variance)


def images_needed(discordant: float, difference: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Images for McNemar's test to see a difference with this power (Miettinen 1968; Connor 1987).

    `discordant` is the share of images on which exactly one is right; it is at least as large as the difference.
    """
    assert difference > 0, difference
    discordant = max(discordant, difference)
    z = norm.ppf((1 + confidence) / 2) * math.sqrt(discordant)
    z += norm.ppf(power) * math.sqrt(discordant - difference**2)
    return math.ceil((z / difference) ** 2)


def images_needed_not_worse(discordant: float, margin: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Images to show "not worse than the margin" of two that are equally good (Nam 1997); 0 without a margin."""
    if margin <= 0:
        return 0
    z = norm.ppf((1 + confidence) / 2) + norm.ppf(power)
    return math.ceil(max(discordant, margin) * (z / margin) ** 2)
