"""Accuracy of a classifier on corrupted images: noise, blur, weather and compression."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.calibration import wilson_interval
from vitcifar.evaluation.corruptions import CORRUPTIONS, corrupt
from vitcifar.evaluation.metrics import Predictor

SEVERITIES = (1, 2, 3, 4, 5)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Robustness:
    """Accuracy on clean and on corrupted images."""

    names: tuple[str, ...]
    severities: tuple[int, ...]
    num_images: int
    clean_accuracy: float
    accuracy: np.ndarray  # (corruptions, severities)

    @property
    def mean_accuracy(self) -> float:
        return float(self.accuracy.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the mean accuracy, for `num_images` independent images."""
        return wilson_interval(round(self.mean_accuracy * self.num_images), self.num_images)

    def scalars(self) -> dict[str, float]:
        """Mean accuracy over everything and of each corruption over its severities."""
        means = {f"corruption/{name}": float(row.mean()) for name, row in zip(self.names, self.accuracy, strict=True)}
        return {"corruption_accuracy": self.mean_accuracy, "clean_accuracy": self.clean_accuracy} | means

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "accuracy": self.accuracy.tolist()}


def evaluate_robustness(
    predictor: Predictor,
    dataset: ImageDataset,
    *,
    names: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Robustness:
    """Evaluate the predictor on every image once per corruption and severity, and once clean.

    Image i is corrupted with `seed` + i. `progress` wraps the corruptions, for a progress bar.
    """
    grid = []
    for name in progress(names):
        row = []
        for severity in severities:
            images = [corrupt(image, name, severity, seed + index) for index, image in enumerate(dataset.images)]
            row.append(_accuracy(predictor, images, dataset.labels))
        grid.append(row)
    return Robustness(
        names=tuple(names),
        severities=tuple(severities),
        num_images=len(dataset),
        clean_accuracy=_accuracy(predictor, list(dataset.images), dataset.labels),
        accuracy=np.array(grid),
    )


def _accuracy(predictor: Predictor, images: Sequence[np.ndarray], labels: np.ndarray) -> float:
    return float((np.asarray(predictor(images)).argmax(axis=1) == labels).mean())
