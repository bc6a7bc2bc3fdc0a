"""Answering only when sure: risk against coverage, and the confidence to ask for.

Shapes: N pictures; confidences (N,), correct (N,) true or false.
"""

import dataclasses

import numpy as np

from vitcifar.evaluation.intervals import wilson_interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """What answering only at `confidence` or above gives on one set of pictures; the interval is Wilson's, 95%."""

    target: float  # the precision that was asked for
    confidence: float
    coverage: float  # share of pictures that are answered
    precision: float  # share of right answers among them
    precision_low: float
    precision_high: float
    num_answered: int


def risk_coverage(confidences: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of wrong answers among the most confident k of N, for k = 1..N: (coverage (N,), risk (N,)).

    Pictures of equal confidence cannot be told apart, so each counts as the mean of its group
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


def choose_confidence(confidences: np.ndarray, correct: np.ndarray, target: float) -> float:
    """The confidence to ask for, chosen on validation: 0 = any, for no target (0); 1 = none reaches the target."""
    if target == 0:
        return 0.0
    threshold = fit_threshold(confidences, correct, target)
    return 1.0 if threshold is None else threshold.confidence


def apply_threshold(confidences: np.ndarray, correct: np.ndarray, confidence: float, target: float) -> Threshold:
    """What a threshold that was chosen elsewhere gives on these pictures."""
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
