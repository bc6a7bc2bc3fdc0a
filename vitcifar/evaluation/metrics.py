"""Classification metrics with confidence intervals, overall, by class and on slices, from the logits of any predictor.

Shapes: N images, K classes. Logits are (N, K), labels (N,) integers, the confusion matrix (K, K) with
true classes as rows and predictions as columns.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import fisher_exact
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import TrainingError
from vitcifar.evaluation import calibration
from vitcifar.evaluation.calibration import Bin, aurc, wilson_interval

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
    threshold: float = 0.0  # of the confidence, chosen on validation like the temperature; 0 = off

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

    def scalars(self) -> dict[str, float]:
        """Every metric by its flat name, those of a class as `recall/cat`."""
        flat = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type is float}
        for score, name in zip(self.classes, metric_names(self.class_names), strict=True):
            flat |= {f"precision/{name}": score.precision, f"recall/{name}": score.recall, f"f1/{name}": score.f1}
        return flat

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; `from_dict` reads them back."""
        plain = dataclasses.asdict(self)
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Evaluation":
        return cls(
            **{
                **plain,
                "class_names": tuple(plain["class_names"]),
                "classes": tuple(ClassScore(**row) for row in plain["classes"]),
                "confused": tuple(ConfusedPair(**row) for row in plain["confused"]),
                "bins": tuple(Bin(**row) for row in plain["bins"]),
                **{name: np.array(plain[name], np.int64) for name in ("confusion", "labels", "predictions")},
                "confidences": np.array(plain["confidences"], np.float64),
            }
        )


def evaluate(
    logits: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    temperature: float = 1.0,
    threshold: float = 0.0,
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
        threshold=float(threshold),
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
    names: list[str] = []
    for index, class_name in enumerate(class_names):
        name = re.sub(r"[^\w.\- ]", "_", class_name).strip(". ") or f"class {index}"
        names.append(name if name not in names else f"{name} {index}")
    return names


LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """The images whose property lies in [low, high]; the interval is Wilson's, 95%."""

    property: str
    name: str
    low: float
    high: float
    count: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    p_value: float  # Fisher's exact test against all other images, with Holm's correction over all slices


def evaluate_slices(evaluation: Evaluation, dataset: ImageDataset) -> tuple[Slice, ...]:
    """Thirds of the images by brightness, contrast and size; a property that is equal for all images has no slices."""
    properties = image_properties(dataset.images)
    names = {
        "brightness": ("dark", "medium", "bright"),
        "contrast": ("flat", "medium", "contrasty"),
        "size": ("small", "medium", "large"),
    }
    rows = [row for key, values in properties.items() for row in _thirds(key, names[key], values, evaluation.correct)]
    corrected = holm([row.p_value for row in rows])
    return tuple(dataclasses.replace(row, p_value=p) for row, p in zip(rows, corrected, strict=True))


def image_properties(images: np.ndarray | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Mean luma and its standard deviation, both 0 to 1, and the square root of the area in pixels, of each image."""
    lumas = [image @ LUMA / 255 for image in images]  # (H, W) each
    return {
        "brightness": np.array([luma.mean() for luma in lumas]),
        "contrast": np.array([luma.std() for luma in lumas]),
        "size": np.array([luma.size**0.5 for luma in lumas]),
    }


def _thirds(key: str, names: tuple[str, ...], values: np.ndarray, correct: np.ndarray) -> list[Slice]:
    """Up to three slices; equal values are in one slice, so there may be fewer."""
    if values.min() == values.max():
        return []
    cuts = np.quantile(values, [1 / 3, 2 / 3])
    member = np.searchsorted(cuts, values, side="left")
    rows = []
    for third, name in enumerate(names):
        chosen = member == third
        count, num_correct = int(chosen.sum()), int(correct[chosen].sum())
        if not count:
            continue
        low, high = wilson_interval(num_correct, count)
        others = correct[~chosen]
        table = [[num_correct, count - num_correct], [int(others.sum()), int((~others).sum())]]
        rows.append(
            Slice(
                property=key,
                name=name,
                low=float(values[chosen].min()),
                high=float(values[chosen].max()),
                count=count,
                accuracy=num_correct / count,
                accuracy_low=low,
                accuracy_high=high,
                p_value=float(fisher_exact(table).pvalue),
            )
        )
    return rows


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for multiple tests, controlling the family-wise error rate (Holm 1979)."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.minimum(scaled, 1))
    return corrected.tolist()
