"""Calibration of confidences: temperature, reliability, confidence threshold and risk-coverage curve.

Shapes: N images, K classes. Logits are (N, K), labels (N,), confidences (N,) in [0, 1], correct (N,) bool."""

import dataclasses
import math

import numpy as np
from scipy import special
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss

NEVER = "never confident"  # a threshold of None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """The images with a confidence in (low, high]; an empty bin has count, mean confidence and accuracy 0."""

    low: float
    high: float
    count: int
    confidence: float  # mean
    accuracy: float


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (N, K) in float64 of logits divided by the temperature."""
    return np.asarray(special.softmax(np.asarray(logits, np.float64) / temperature, axis=1))


def nll(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the labels, in nats: the cross-entropy loss."""
    log_probabilities = special.log_softmax(np.asarray(logits, np.float64) / temperature, axis=1)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance to the one-hot label, summed over classes: 0 is best, 2 worst (Brier 1950)."""
    classes = np.arange(probabilities.shape[1])
    return float(brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False))


def reliability_bins(confidences: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> tuple[Bin, ...]:
    """Equal-width bins of confidence, with the mean confidence and the accuracy in each."""
    edges = np.linspace(0, 1, num_bins + 1)
    member = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(member, minlength=num_bins)
    means = [
        np.bincount(member, values, minlength=num_bins) / np.maximum(counts, 1) for values in (confidences, correct)
    ]
    rows = zip(edges[:-1], edges[1:], counts, *means, strict=True)
    return tuple(
        Bin(low=float(low), high=float(high), count=int(count), confidence=float(confidence), accuracy=float(accuracy))
        for low, high, count, confidence, accuracy in rows
    )


def ece(confidences: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins (Guo et al. 2017)."""
    bins = reliability_bins(confidences, correct, num_bins)
    return float(sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / len(confidences))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in [0.01, 100] that minimises the loss; fit it on validation, never on test (Guo et al. 2017).

    It changes no label. If all N predictions are correct, the loss falls as the temperature approaches 0 and has no
    minimum. Then each label has the probability (N + 1) / (N + 2) instead of 1, the other classes share the rest:
    Platt's target for N correct out of N (1999).
    """
    logits = np.asarray(logits, np.float64)
    total, num_classes = logits.shape
    rest = 1 / (total + 2) if (logits.argmax(axis=1) == labels).all() and num_classes > 1 else 0.0
    targets = np.full(logits.shape, rest / max(num_classes - 1, 1))
    targets[np.arange(total), labels] = 1 - rest

    def loss(log_temperature: float) -> float:
        """Convex in 1 / temperature, so it has a single minimum."""
        log_probabilities = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float((targets * log_probabilities).sum(axis=1).mean())

    result = minimize_scalar(loss, bounds=np.log([0.01, 100.0]), options={"xatol": 1e-6})
    return float(np.exp(result.x))


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a proportion (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """Result of predicting only at `confidence` or above on one dataset; the interval is Wilson's, 95%."""

    target: float  # the precision that the threshold was chosen for
    confidence: float | None  # None = never confident: no image is at or above the threshold
    coverage: float  # share of images at or above the threshold
    precision: float  # share of correct predictions among them
    precision_low: float
    precision_high: float
    num_answered: int  # images at or above the threshold

    @property
    def text(self) -> str:
        return NEVER if self.confidence is None else f"{self.confidence:.3f}"


def risk_coverage(confidences: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Error rate among the k most confident of N images, for k = 1..N: (coverage (N,), risk (N,)).

    Images of equal confidence have no order, so each counts as the mean of its group (El-Yaniv & Wiener 2010).
    """
    order = np.argsort(-confidences, kind="stable")
    _, group = np.unique(-confidences[order], return_inverse=True)
    errors = 1.0 - correct[order].astype(np.float64)
    errors = (np.bincount(group, errors) / np.bincount(group))[group]
    counts = np.arange(1, len(errors) + 1)
    return counts / len(errors), np.cumsum(errors) / counts


def aurc(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Area under the risk-coverage curve: mean risk over all coverages, 0 is best (Geifman & El-Yaniv 2017)."""
    return float(risk_coverage(confidences, correct)[1].mean())


def best_aurc(correct: np.ndarray) -> float:
    """The smallest possible area for this accuracy: every error less confident than every correct prediction."""
    return aurc(correct.astype(np.float64), correct)


def fit_threshold(confidences: np.ndarray, correct: np.ndarray, target: float) -> Threshold | None:
    """The lowest confidence at which the precision reaches the target; choose it on validation, not on test.

    None if no confidence reaches the target.
    """
    order = np.argsort(-confidences, kind="stable")
    ranked = confidences[order]
    precision = np.cumsum(correct[order]) / np.arange(1, len(ranked) + 1)
    last_of_group = np.append(ranked[1:] != ranked[:-1], True)
    reached = np.flatnonzero(last_of_group & (precision >= target))
    if not len(reached):
        return None
    below_1 = math.nextafter(1, 0)  # 1 means "never confident" in a release of vitcifar 0.1
    return apply_threshold(confidences, correct, min(float(ranked[reached[-1]]), below_1), target)


def choose_threshold(confidences: np.ndarray, correct: np.ndarray, target: float) -> float | None:
    """The confidence threshold for a target precision: 0 (off) for target 0, None if no confidence reaches it."""
    if target == 0:
        return 0.0
    threshold = fit_threshold(confidences, correct, target)
    return threshold.confidence if threshold else None


def apply_threshold(confidences: np.ndarray, correct: np.ndarray, confidence: float | None, target: float) -> Threshold:
    """Result on these images of a threshold that was chosen on others."""
    answered = confidences >= (math.inf if confidence is None else confidence)
    count, num_correct = int(answered.sum()), int(correct[answered].sum())
    low, high = wilson_interval(num_correct, count)
    return Threshold(
        target=target,
        confidence=confidence,
        coverage=count / len(confidences),
        precision=num_correct / count if count else 0.0,
        precision_low=low,
        precision_high=high,
        num_answered=count,
    )
