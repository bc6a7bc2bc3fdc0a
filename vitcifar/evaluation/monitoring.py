"""What can be said of predictions whose labels nobody knows: their estimated accuracy, and whether the images drift.

Servers import this: it needs numpy alone.
Shapes: N images of a window, M reference images, D the width of an embedding.
"""

import dataclasses
import math

import numpy as np

Z_95 = 1.959964  # of a two-sided interval of 95%
NUM_PERMUTATIONS = 499
ROUNDING = 1e-6  # of a squared MMD in float32; its scale is 1 / N + 1 / M


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccuracyEstimate:
    """An accuracy that was estimated without labels, and its 95% band."""

    accuracy: float
    low: float
    high: float


def estimate_accuracy(confidences: np.ndarray, *, calibration_error: float = 0.0) -> AccuracyEstimate:
    """Confidence-based performance estimation (CBPE; NannyML, 2022): the mean of calibrated confidences (N,).

    If a prediction with confidence c is correct with probability c, the number of correct ones is Poisson binomial. The
    band has its standard deviation and, in addition, `calibration_error`, that of the mean confidence against the
    accuracy. The assumption fails for images on which the calibration does not hold, above all after a drift.
    """
    confidences = np.asarray(confidences, np.float64)
    mean = float(confidences.mean())
    sampling = float((confidences * (1 - confidences)).sum()) / len(confidences) ** 2
    half = Z_95 * math.sqrt(sampling + calibration_error**2)
    return AccuracyEstimate(accuracy=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def calibration_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """How far the mean confidence (N,) of other images may be from their accuracy, as a standard deviation.

    The gap that labelled images show, at least its own standard error: few images cannot show a small one.
    """
    gaps = np.asarray(correct, np.float64) - np.asarray(confidences, np.float64)
    return max(abs(float(gaps.mean())), math.sqrt(float((gaps**2).mean()) / len(gaps)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoSampleTest:
    """Whether two samples come from one distribution: the squared MMD, and the permutation test's p-value."""

    mmd2: float
    p_value: float


def two_sample_test(
    reference: np.ndarray, window: np.ndarray, *, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> TwoSampleTest:
    """Permutation test of the maximum mean discrepancy (Gretton et al. 2012) of embeddings (M, D) and (N, D).

    The kernel is Gaussian, its bandwidth the median distance in the pooled sample. Of exchangeable samples, p <= 0.05
    in 5% of the cases whatever their distribution and sizes. Memory is 4 (M + N)^2 bytes a matrix.
    """
    pooled = np.concatenate([reference, window]).astype(np.float32)
    kernel = _gaussian_kernel(pooled)  # (M + N, M + N)
    num_reference, total = len(reference), len(pooled)
    weights = np.full(total, 1 / len(window), np.float32)
    weights[:num_reference] = -1 / num_reference
    rng = np.random.default_rng(seed)
    columns = rng.permuted(np.tile(weights, (num_permutations, 1)), axis=1)  # (P, M + N)
    columns = np.concatenate([weights[None], columns])
    statistics = np.einsum("pi,pi->p", columns @ kernel, columns)  # the biased estimate: its diagonal is constant
    as_large = int((statistics[1:] >= statistics[0] - ROUNDING).sum())
    return TwoSampleTest(mmd2=float(statistics[0]), p_value=(1 + as_large) / (1 + num_permutations))


def _gaussian_kernel(rows: np.ndarray) -> np.ndarray:
    """exp(-d^2 / (2 s^2)) of all pairs of rows (N, D), with s the median of the distances d between different rows."""
    centred = rows - rows.mean(axis=0)
    norms = np.einsum("id,id->i", centred, centred)
    squared = np.maximum(norms[:, None] + norms - 2 * (centred @ centred.T), 0)
    np.fill_diagonal(squared, 0)
    median = float(np.median(squared[np.triu_indices(len(rows), 1)]))
    return np.asarray(np.exp(-squared / (2 * median)) if median > 0 else (squared == 0).astype(np.float32))
