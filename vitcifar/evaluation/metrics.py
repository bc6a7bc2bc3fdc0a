"""Classification metrics with confidence intervals, overall and by class, from the logits of any predictor.

Shapes: N images, K classes. Logits are (N, K), labels (N,) integers, the confusion matrix (K, K) with
true classes as rows and predictions as columns.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from vitcifar.errors import TrainingError
from vitcifar.evaluation import calibration
from vitcifar.evaluation.calibration import Bin, aurc, wilson_interval

MAX_METRIC_NAME = 200  # characters of a class; MLflow's limit is 250 with what stands in front

NUMBERS = (
    *("accuracy", "top2_", "top3_", "precision_", "recall_", "f1_", "loss", "ece", "brier", "aurc", "temperature"),
    "threshold",
)
SCALARS = ("accuracy", "f1_macro", "loss", "ece", "brier", "aurc")

Predictor = Callable[[Sequence[np.ndarray]], np.ndarray]  # images, uint8 (H, W, 3) each -> logits (N, K)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Metrics of one class; the interval is of the recall (Wilson, 95%)."""

    name: str
    support: int
    precision: float
    recall: float
    recall_low: float
    recall_high: float
    f1: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """How many images of the class `label` were predicted as `prediction`, and their share of that class."""

    label: str
    prediction: str
    count: int
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The metrics of a classifier on one dataset, computed by `evaluate`."""

    class_names: tuple[str, ...]
    fingerprint: str  # of the images; "" = unknown
    temperature: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    top2_accuracy: float
    top3_accuracy: float
    precision_macro: float
    recall_macro: float
    f1_macro: float
    loss: float
    ece: float
    brier: float
    aurc: float
    classes: tuple[ClassScore, ...]
    confused: tuple[ConfusedPair, ...]  # most frequent first
    bins: tuple[Bin, ...]
    confusion: np.ndarray  # (K, K)
    labels: np.ndarray  # (N,)
    predictions: np.ndarray  # (N,)
    confidences: np.ndarray  # (N,)
    threshold: float | None = 0.0  # of the confidence, chosen on validation; 0 = off, None = never confident
    loss_uncalibrated: float | None = None  # of temperature 1
    ece_uncalibrated: float | None = None
    temperature_rejected: float | None = None  # fitted on validation, but loss or ECE on these images became worse

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> np.ndarray:
        return np.asarray(self.predictions == self.labels)  # (N,)

    def accuracy_text(self) -> str:
        """The accuracy with its interval, for example "0.9680 (95% interval 0.9381 to 0.9837, 250 images)"."""
        interval = f"95% interval {self.accuracy_low:.4f} to {self.accuracy_high:.4f}"
        return f"{self.accuracy:.4f} ({interval}, {self.num_images:,} images)"

    def calibration_text(self) -> str:
        """The temperature, and the calibration error and the loss before and after calibration."""
        text = f"temperature {self.temperature:.4f}, ECE {self.ece:.4f}, loss {self.loss:.4f}"
        if self.temperature_rejected is not None:
            return f"{text}; temperature {self.temperature_rejected:.4f}, fitted on validation, made one of them worse"
        if self.ece_uncalibrated is not None and self.loss_uncalibrated is not None and self.temperature != 1:
            text += f" (without calibration ECE {self.ece_uncalibrated:.4f}, loss {self.loss_uncalibrated:.4f})"
            text += "; calibration made the ECE worse" if self.ece > self.ece_uncalibrated else ""
        return text

    def scalars(self) -> dict[str, float]:
        """The metrics by which runs are compared; `to_dict` has all."""
        return {name: getattr(self, name) for name in SCALARS}

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; `from_dict` reads them back."""
        plain = dataclasses.asdict(self)
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Evaluation":
        """Raises KeyError, TypeError, ValueError, AttributeError or OverflowError for what is no evaluation."""
        threshold = plain.get("threshold", 0.0)
        read = cls(
            **{
                **plain,
                "threshold": None if threshold == 1 else threshold,  # as vitcifar 0.1 recorded "never confident"
                "class_names": tuple(plain["class_names"]),
                "classes": tuple(ClassScore(**row) for row in plain["classes"]),
                "confused": tuple(ConfusedPair(**row) for row in plain["confused"]),
                "bins": tuple(Bin(**row) for row in plain["bins"]),
                **{name: np.array(plain[name], np.int64) for name in ("confusion", "labels", "predictions")},
                "confidences": np.array(plain["confidences"], np.float64),
            }
        )
        read._check()
        return read

    def _check(self) -> None:
        """Raises TypeError or ValueError for numbers that are none, and for arrays that do not fit each other."""
        N, K = len(self.labels), len(self.class_names)
        numbers = [value for name, value in vars(self).items() if name.startswith(NUMBERS) and value is not None]
        if not N or not np.isfinite([*map(float, numbers), *self.confidences]).all():
            raise ValueError("it has no images, or numbers that are not finite")
        if any(isinstance(value, str) for value in numbers):
            raise TypeError("it has texts for numbers")
        if any(array.shape != (N,) for array in (self.labels, self.predictions, self.confidences)):
            raise ValueError("it has another number of labels than of predictions")
        if self.confusion.shape != (K, K) or not ((self.labels >= 0) & (self.labels < K)).all():
            raise ValueError("it has other classes than its labels")


def evaluate(
    logits: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    temperature: float = 1.0,
    threshold: float | None = 0.0,
    fingerprint: str = "",
) -> Evaluation:
    """Compute the metrics of logits (N, K), not yet divided by the temperature, and labels (N,).

    Raises TrainingError if a logit is NaN or infinite.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    assert logits.shape == (len(labels), len(class_names)) and len(labels), (logits.shape, labels.shape)
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise TrainingError(
            f"The network produced NaN or infinite logits for {broken} of {len(labels)} images: "
            "train again with a lower --learning-rate."
        )
    probabilities = calibration.softmax(logits, temperature)
    predictions = logits.argmax(axis=1)
    correct = predictions == labels
    confidences = probabilities.max(axis=1)
    low, high = wilson_interval(int(correct.sum()), len(labels))
    classes = class_scores(labels, predictions, class_names)
    confusion = confusion_matrix(labels, predictions, labels=np.arange(len(class_names)))
    present = [score for score in classes if score.support]
    return Evaluation(
        class_names=tuple(class_names),
        fingerprint=fingerprint,
        temperature=float(temperature),
        accuracy=float(correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        top2_accuracy=top_k_accuracy(logits, labels, 2),
        top3_accuracy=top_k_accuracy(logits, labels, 3),
        precision_macro=float(np.mean([score.precision for score in present])),
        recall_macro=float(np.mean([score.recall for score in present])),
        f1_macro=float(np.mean([score.f1 for score in present])),
        loss=calibration.nll(logits, labels, temperature),
        ece=calibration.ece(confidences, correct),
        brier=calibration.brier(probabilities, labels),
        aurc=aurc(confidences, correct),
        classes=classes,
        confused=confused_pairs(confusion, class_names),
        bins=calibration.reliability_bins(confidences, correct),
        confusion=confusion,
        labels=labels,
        predictions=predictions,
        confidences=confidences,
        threshold=threshold,
        loss_uncalibrated=calibration.nll(logits, labels),
        ece_uncalibrated=calibration.ece(calibration.softmax(logits).max(axis=1), correct),
    )


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of images whose label is among the k >= 2 largest logits; of equal logits the first class ranks higher."""
    num_classes = logits.shape[1]
    if k >= num_classes:
        return 1.0
    # scikit-learn ranks the last of equal classes first: reversed classes agree with argmax, so top-k >= accuracy.
    reverse = num_classes - 1 - labels
    return float(top_k_accuracy_score(reverse, logits[:, ::-1], k=k, labels=np.arange(num_classes)))


def class_scores(labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> tuple[ClassScore, ...]:
    """Precision, recall and F1 of each class; 0 for a class without images or without predictions."""
    columns = precision_recall_fscore_support(labels, predictions, labels=np.arange(len(class_names)), zero_division=0)
    scores = []
    for name, p, r, f, n in zip(class_names, *(column.tolist() for column in columns), strict=True):
        n = int(n)  # scikit-learn counts in floats when no prediction is correct
        low, high = wilson_interval(round(r * n), n)
        scores.append(ClassScore(name=name, support=n, precision=p, recall=r, recall_low=low, recall_high=high, f1=f))
    return tuple(scores)


def confused_pairs(confusion: np.ndarray, class_names: Sequence[str]) -> tuple[ConfusedPair, ...]:
    """Every confused pair of classes, most frequent first."""
    pairs = [
        ConfusedPair(label=class_names[i], prediction=class_names[j], count=int(n), share=float(n / confusion[i].sum()))
        for (i, j), n in np.ndenumerate(confusion)
        if n and i != j
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, -pair.share)))


def metric_names(class_names: Sequence[str]) -> list[str]:
    """Class names that MLflow and TensorBoard accept in a metric name, still distinct from each other."""
    names: dict[str, None] = {}
    for index, class_name in enumerate(class_names):
        name = re.sub(r"[^\w.\- ]", "_", class_name)[:MAX_METRIC_NAME].strip(". ") or f"class {index}"
        while name in names:
            name = f"{name} {index}"
        names[name] = None
    return [*names]
