"""Whether a confidence of 0.9 means right nine times in ten: temperature, ECE, threshold, risk against coverage.

Shapes: N images, K classes. Logits are (N, K), labels (N,), confidences (N,) in [0, 1], correct (N,) bool."""

import dataclasses
import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as _softmax
from scipy.stats import norm

TEMPERATURES = (0.01, 100.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """The images whose confidence lies in (low, high]; an empty bin has count 0 and zeros."""

    low: float
    high: float
    count: int
    confidence: float  # mean
    accuracy: float


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (N, K) in float64, of logits divided by the temperature."""
    return _softmax(np.asarray(logits, np.float64) / temperature, axis=1)


def nll(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the labels, in nats: the cross-entropy loss."""
    log_probabilities = log_softmax(np.asarray(logits, np.float64) / temperature, axis=1)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance to the one-hot label, summed over classes: 0 is best, 2 worst (Brier 1950)."""
    errors = np.array(probabilities, np.float64)  # a copy
    errors[np.arange(len(labels)), labels] -= 1
    return float((errors**2).sum(axis=1).mean())


def reliability_bins(confidences: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> tuple[Bin, ...]:
    """Equal-width bins of confidence, with how often the answers in each were right."""
    edges = np.linspace(0, 1, num_bins + 1)
    member = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    bins = []
    for index in range(num_bins):
        chosen = member == index
        count = int(chosen.sum())
        bins.append(
            Bin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                count=count,
                confidence=float(confidences[chosen].mean()) if count else 0.0,
                accuracy=float(correct[chosen].mean()) if count else 0.0,
            )
        )
    return tuple(bins)


def ece(confidences: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins (Guo et al. 2017)."""
    bins = reliability_bins(confidences, correct, num_bins)
    return float(sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / len(confidences))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the loss; fit it on validation, never on test (Guo et al. 2017).

    Dividing all logits by it leaves every answer as it was. It is kept within 0.01 and 100. Where every answer is
    right the loss only falls as the temperature goes to 0, so there is nothing to learn and the answer is 1.
    """
    logits = np.asarray(logits, np.float64)
    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    low, high = np.log(TEMPERATURES)
    # The loss is convex in 1 / temperature, so it has one valley in log(temperature) too.
    found = minimize_scalar(
        lambda x: nll(logits, labels, float(np.exp(x))), bounds=(low, high), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion, two-sided, sensible at 0 and at 1 (Wilson 1927); (0, 1) of no trials."""
    assert 0 <= successes <= trials, (successes, trials)
    if trials == 0:
        return 0.0, 1.0
    z = float(norm.ppf((1 + confidence) / 2))
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """What answering only at `confidence` or above gives on one set of images; the interval is Wilson's, 95%."""

    target: float  # the precision that was asked for
    confidence: float
    coverage: float  # share of images that are answered
    precision: float  # share of right answers among them
    precision_low: float
    precision_high: float
    num_answered: int


def risk_coverage(confidences: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of wrong answers among the most confident k of N, for k = 1..N: (coverage (N,), risk (N,)).

    Images of equal confidence cannot be told apart, so each counts as the mean of its group
    (El-Yaniv & Wiener 2010).
    """
    order = np.argsort(-confidences, kind="stable")
    _, group = np.unique(-confidences[order], return_inverse=True)
    wrong = 1.0 - correct[order].astype(np.float64)
    wrong = (np.bincount(group, wrong) / np.bincount(group))[group]
    taken = np.arange(1, len(wrong) + 1)
    return taken / len(wrong), np.cumsum(wrong) / taken


def aurc(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Area under the risk-coverage curve: mean risk over all coverages, 0 is best (Geifman & El-Yaniv 2017)."""
    return float(risk_coverage(confidences, correct)[1].mean())


def best_aurc(correct: np.ndarray) -> float:
    """The smallest area that these answers allow: every wrong one less confident than every right one."""
    return aurc(correct.astype(np.float64), correct)


def fit_threshold(confidences: np.ndarray, correct: np.ndarray, target: float) -> Threshold | None:
    """The lowest confidence from which on answers are right often enough; choose it on validation, not on test.

    None when no confidence reaches the target.
    """
    order = np.argsort(-confidences, kind="stable")
    ranked = confidences[order]
    precision = np.cumsum(correct[order]) / np.arange(1, len(ranked) + 1)
    last_of_its_value = np.append(ranked[1:] != ranked[:-1], True)
    enough = np.flatnonzero(last_of_its_value & (precision >= target))
    if not len(enough):
        return None
    return apply_threshold(confidences, correct, float(ranked[enough[-1]]), target)


def choose_threshold(confidences: np.ndarray, correct: np.ndarray, target: float) -> float:
    """The confidence to ask for, chosen on validation: 0 = any, for no target (0); 1 = none reaches the target."""
    if target == 0:
        return 0.0
    threshold = fit_threshold(confidences, correct, target)
    return 1.0 if threshold is None else threshold.confidence


def apply_threshold(confidences: np.ndarray, correct: np.ndarray, confidence: float, target: float) -> Threshold:
    """What a threshold that was chosen elsewhere gives on these images."""
    answered = confidences >= confidence
    count, right = int(answered.sum()), int(correct[answered].sum())
    low, high = wilson_interval(right, count)
    return Threshold(
        target=target,
        confidence=confidence,
        coverage=count / len(confidences),
        precision=right / count if count else 0.0,
        precision_low=low,
        precision_high=high,
        num_answered=count,
    )
