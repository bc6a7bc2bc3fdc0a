"""Where a classifier is weak: accuracy on dark and bright, flat and contrasty, small and large images."""

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
    """The images whose property lies between low and high, both included; the interval is Wilson's, 95%."""

    property: str
    name: str
    low: float
    high: float
    count: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    p_value: float  # Fisher's exact test against the images outside the slice, Holm's correction over all slices


def evaluate_slices(evaluation: Evaluation, dataset: ImageDataset) -> tuple[Slice, ...]:
    """Thirds of the images by brightness, contrast and size; a property that all images share has no slices."""
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
    """Of each image: mean luma and its standard deviation, both 0 to 1, and the side of a square of equal area."""
    lumas = [image @ LUMA / 255 for image in images]  # (H, W) each
    return {
        "brightness": np.array([luma.mean() for luma in lumas]),
        "contrast": np.array([luma.std() for luma in lumas]),
        "size": np.array([luma.size**0.5 for luma in lumas]),
    }


def _thirds(key: str, names: tuple[str, ...], values: np.ndarray, correct: np.ndarray) -> list[Slice]:
    """Up to three slices; equal values are never parted, so there may be fewer."""
    if values.min() == values.max():
        return []
    cuts = np.quantile(values, [1 / 3, 2 / 3])
    member = np.searchsorted(cuts, values, side="left")
    rows = []
    for third, name in enumerate(names):
        chosen = member == third
        count, right = int(chosen.sum()), int(correct[chosen].sum())
        if not count:
            continue
        low, high = wilson_interval(right, count)
        others = ~chosen
        table = [[right, count - right], [int(correct[others].sum()), int((~correct[others]).sum())]]
        rows.append(
            Slice(
                property=key,
                name=name,
                low=float(values[chosen].min()),
                high=float(values[chosen].max()),
                count=count,
                accuracy=right / count,
                accuracy_low=low,
                accuracy_high=high,
                p_value=float(fisher_exact(table).pvalue),
            )
        )
    return rows


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests at once, so that one false alarm among them stays as rare as told (Holm 1979)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(
        [min(1.0, (len(p_values) - rank) * p_values[index]) for rank, index in enumerate(order)]
    )
    return [float(p) for p in corrected]
