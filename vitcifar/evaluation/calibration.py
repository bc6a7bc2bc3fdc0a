"""Whether a confidence of 0.9 means right nine times in ten: temperature, ECE, NLL, Brier, reliability bins.

Shapes: N pictures, K classes. Logits are (N, K), labels (N,) whole numbers, confidences (N,) in [0, 1].
"""

import dataclasses

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as _softmax

TEMPERATURES = (0.01, 100.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """The pictures whose confidence lies in (low, high]; an empty bin has count 0 and zeros."""

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
