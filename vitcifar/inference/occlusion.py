"""Which parts of an image a prediction rests on: each part is covered in turn, and the model predicts again.

Occlusion sensitivity (Zeiler & Fergus 2014, "Visualizing and understanding convolutional networks"). It needs nothing
but the model that serves, float or int8. G cells along a side of the image.
"""

import dataclasses
import itertools

import numpy as np
from PIL import Image

from vitcifar.inference.session import OnnxClassifier

GRID = 7  # cells along a side: 49 more predictions of an image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Occlusion:
    """What covering each cell does to the prediction of the whole image."""

    label: str
    probability: float
    covered: np.ndarray  # (G, G), the probability of the label with the cell covered
    drop: np.ndarray  # (G, G), by how much the log-odds of the label fall: it also tells 0.9999 from 0.999


def occlude(classifier: OnnxClassifier, image: np.ndarray, grid: int = GRID) -> Occlusion:
    """Cover each of `grid` x `grid` cells of an image, uint8 (H, W, 3), with its mean colour and classify it.

    Raises ImageError for an array of another type or shape.
    """
    whole = classifier.logits([image]) / classifier.temperature  # (1, K)
    label = int(whole.argmax())
    side = classifier.image_size or max(image.shape[:2])
    # As the network does it first, so that covering is exact, and cheap for a large image.
    resized = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    mean = resized.mean(axis=(0, 1)).round().astype(np.uint8)
    edges = np.linspace(0, side, grid + 1).round().astype(int)
    images = [resized]
    for top, bottom in itertools.pairwise(edges):
        for left, right in itertools.pairwise(edges):
            covered = resized.copy()
            covered[top:bottom, left:right] = mean
            images.append(covered)
    log_odds = _log_odds(classifier.logits(images) / classifier.temperature, label)  # (1 + G G,)
    return Occlusion(
        label=classifier.class_names[label],
        probability=float(_probability(_log_odds(whole, label))[0]),
        covered=_probability(log_odds[1:]).reshape(grid, grid),
        drop=(log_odds[0] - log_odds[1:]).reshape(grid, grid),
    )


def _log_odds(logits: np.ndarray, label: int) -> np.ndarray:
    """The log-odds (N,) of one class, of logits (N, K)."""
    others = np.delete(logits, label, axis=1).astype(np.float64)
    return np.asarray(logits[:, label] - np.logaddexp.reduce(others, axis=1))


def _probability(log_odds: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0, -log_odds)))
