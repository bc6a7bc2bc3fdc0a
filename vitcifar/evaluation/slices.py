"""Accuracy on slices of a dataset: thirds by brightness, contrast and size, and their p-values."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.stats import fisher_exact

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.calibration import wilson_interval
from vitcifar.evaluation.metrics import Evaluation

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
    rows = []
    for image in images:
        luma = image @ LUMA / 255  # (H, W)
        rows.append((luma.mean(), luma.std(), luma.size**0.5))
    return dict(zip(("brightness", "contrast", "size"), np.array(rows).T, strict=True))


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
