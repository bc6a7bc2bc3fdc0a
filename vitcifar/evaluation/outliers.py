"""How well a classifier's own answers give away pictures of something else.

Shapes: N pictures, K classes, logits (N, K). Every score is high for pictures like those of training.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from vitcifar.evaluation.calibration import softmax


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OutlierScore:
    """How well one score tells the pictures of a data set from pictures of another source."""

    name: str
    auroc: float  # 0.5 = no better than chance
    auroc_low: float
    auroc_high: float
    average_precision: float  # of finding the outsiders
    false_positives: float  # share of outsiders let in where 95% of the insiders are (FPR95)
    threshold: float  # the score at that place
    inside: np.ndarray  # (N_in,)
    outside: np.ndarray  # (N_out,)


def outlier_scores(logits: np.ndarray, temperature: float = 1.0) -> Mapping[str, np.ndarray]:
    """Scores (N,) by name, high = like training.

    max_softmax (Hendrycks & Gimpel 2017), max_logit (Hendrycks et al. 2022), energy (Liu et al. 2020),
    entropy (negative, of the probabilities) and margin (between the two largest probabilities).
    """
    logits = np.asarray(logits, np.float64)
    probabilities = softmax(logits, temperature)
    ranked = np.sort(probabilities, axis=1)
    second = ranked[:, -2] if logits.shape[1] > 1 else 0.0
    surprise = np.where(probabilities > 0, probabilities * np.log(np.maximum(probabilities, 1e-300)), 0.0)
    return MappingProxyType(
        {
            "max_softmax": ranked[:, -1],
            "max_logit": logits.max(axis=1),
            "energy": temperature * logsumexp(logits / temperature, axis=1),
            "entropy": surprise.sum(axis=1),
            "margin": ranked[:, -1] - second,
        }
    )


def score_outliers(inside: np.ndarray, outside: np.ndarray, temperature: float = 1.0) -> tuple[OutlierScore, ...]:
    """Every score on logits of pictures inside (N_in, K) and of another source (N_out, K), the best AUROC first."""
    scores_inside, scores_outside = outlier_scores(inside, temperature), outlier_scores(outside, temperature)
    results = [tell_apart(name, scores_inside[name], scores_outside[name]) for name in scores_inside]
    return tuple(sorted(results, key=lambda result: -result.auroc))


def tell_apart(name: str, inside: np.ndarray, outside: np.ndarray) -> OutlierScore:
    """How well one score, high for insiders, separates two sets of pictures."""
    scores = np.concatenate([inside, outside])
    is_inside = np.arange(len(scores)) < len(inside)
    auroc = float(roc_auc_score(is_inside, scores))
    low, high = auroc_interval(auroc, len(inside), len(outside))
    threshold = float(np.sort(inside)[int(np.floor(0.05 * len(inside)))])
    return OutlierScore(
        name=name,
        auroc=auroc,
        auroc_low=low,
        auroc_high=high,
        average_precision=float(average_precision_score(~is_inside, -scores)),
        false_positives=float((outside >= threshold).mean()),
        threshold=threshold,
        inside=inside,
        outside=outside,
    )


def auroc_interval(auroc: float, num_inside: int, num_outside: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of an area under the ROC curve, cut at 0 and 1 (Hanley & McNeil 1982)."""
    # Chances that two insiders are both above one outsider, and that one insider is above two outsiders.
    two_above, above_two = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc)
    variance += (num_inside - 1) * (two_above - auroc**2) + (num_outside - 1) * (above_two - auroc**2)
    half = float(norm.ppf((1 + confidence) / 2)) * np.sqrt(max(0.0, variance) / (num_inside * num_outside))
    return float(max(0.0, auroc - half)), float(min(1.0, auroc + half))
