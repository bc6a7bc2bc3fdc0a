"""Whether an image is unlike the training data: the Mahalanobis distance of simple statistics of its pixels.

It finds images of another kind (a photo for a model of digits), not an unknown object in a photo of the same kind.
Shapes: N images, F statistics, all in float64.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from vitcifar.errors import ReleaseError

# Releases hold what was fitted to exactly these statistics: others need another key in release.json.
SIDE, CELLS = 32, 4  # pixels of the reduced image, cells along each side of it
NUM_STATISTICS = 2 * CELLS * CELLS + 4
SHRINKAGE = 0.01  # of the covariance towards a multiple of the identity, for small datasets
QUANTILE = 0.99  # of the validation images that are accepted


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageStatistics:
    """Mean and inverse covariance of the training images' statistics, and the distance beyond which an image is OOD.

    The Mahalanobis distance is the score of Lee et al. 2018, there of a network's features; on pixels it needs no
    network and is the same for every format of a release.
    """

    mean: np.ndarray  # (F,)
    precision: np.ndarray  # (F, F)
    threshold: float

    @classmethod
    def fit(cls, train: Iterable[np.ndarray], validation: Iterable[np.ndarray]) -> "ImageStatistics":
        """From images, each uint8 (H, W, 3); the threshold accepts `QUANTILE` of the validation images."""
        rows = np.stack([statistics_of(image) for image in train])  # (N, F)
        centred = rows - rows.mean(axis=0)
        covariance = centred.T @ centred / len(rows)
        spread = max(float(np.trace(covariance)) / len(covariance), 1e-12)
        precision = np.linalg.inv(covariance + SHRINKAGE * spread * np.eye(len(covariance)))
        unbounded = cls(mean=rows.mean(axis=0), precision=precision, threshold=np.inf)
        distances = np.sort([unbounded.distance(image) for image in validation])
        # Split conformal prediction: of as many new images, at most 1 - QUANTILE are expected beyond it.
        rank = min(len(distances), int(np.ceil((len(distances) + 1) * QUANTILE)))
        return dataclasses.replace(unbounded, threshold=float(distances[rank - 1]))

    def distance(self, image: np.ndarray) -> float:
        """The Mahalanobis distance of an image uint8 (H, W, 3)."""
        difference = statistics_of(image) - self.mean
        return float(np.sqrt(max(0.0, difference @ self.precision @ difference)))

    def relative_distance(self, image: np.ndarray) -> float:
        """The distance of an image divided by the threshold: above 1, the image is out of distribution."""
        return self.distance(image) / max(self.threshold, 1e-12)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; `from_dict` reads them back."""
        return {"mean": self.mean.tolist(), "precision": self.precision.tolist(), "threshold": self.threshold}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "ImageStatistics":
        """Raises ReleaseError for a record that is no such statistics."""
        try:
            mean, precision = np.asarray(plain["mean"], float), np.asarray(plain["precision"], float)
            if mean.shape != (NUM_STATISTICS,) or precision.shape != (NUM_STATISTICS, NUM_STATISTICS):
                raise ValueError(f"shapes {mean.shape} and {precision.shape}")
            return cls(mean=mean, precision=precision, threshold=float(plain["threshold"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ReleaseError(
                f"The image statistics in release.json cannot be read ({str(error)[:200]!r}): choose another."
            ) from None


def statistics_of(image: np.ndarray) -> np.ndarray:
    """Statistics (F,) of an image uint8 (H, W, 3): brightness and contrast in each cell of a grid, colour, edges."""
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2)
    red, green, blue = np.moveaxis(np.asarray(small), 2, 0) / 255  # (SIDE, SIDE) each
    grey = (red + green + blue) / 3
    colour = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    cells = grey.reshape(CELLS, SIDE // CELLS, CELLS, SIDE // CELLS).swapaxes(1, 2).reshape(CELLS**2, -1)
    edges = [np.abs(grey[1:] - grey[:-1]).mean(), np.abs(grey[:, 1:] - grey[:, :-1]).mean()]
    means, contrasts = cells.mean(axis=1), cells.std(axis=1)
    return np.concatenate([means, contrasts, [colour.mean(), colour.std(), *edges]])
