"""Similar images: the nearest training images of a prediction, and duplicates across splits.

Shapes: N images, Q queries, D features, embeddings (N, D). Similarity is the cosine, 0 for a row of zeros.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from PIL import Image
from sklearn import config_context
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from vitcifar.data.dataset import ImageDataset

SEARCH_MEMORY = 64  # MiB of similarities at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicate:
    """An image of one split that is also in another; `same_pixels` = identical, else a near-duplicate."""

    split: str
    id: str
    other_split: str
    other_id: str
    similarity: float
    same_pixels: bool
    same_label: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NearestImages:
    """The k training images most similar to each query, best first."""

    queries: np.ndarray  # (Q,) indices in the dataset of the queries
    train: ImageDataset
    indices: np.ndarray  # (Q, k) indices in `train`
    cosines: np.ndarray  # (Q, k)


def nearest_training(
    queries: np.ndarray, embeddings: np.ndarray, train: ImageDataset, train_embeddings: np.ndarray, k: int = 5
) -> NearestImages:
    """The k training images nearest to the images with the indices `queries`; embeddings (N, D) and (N_train, D)."""
    with config_context(working_memory=SEARCH_MEMORY):
        search = NearestNeighbors(metric="cosine").fit(train_embeddings)
        distances, indices = search.kneighbors(embeddings[queries], min(k, len(train)))
    return NearestImages(queries=queries, train=train, indices=indices, cosines=1 - distances)


def find_duplicates(
    splits: Mapping[str, ImageDataset],
    embeddings: Mapping[str, np.ndarray] | None = None,
    *,
    threshold: float = 0.99,
) -> tuple[Duplicate, ...]:
    """Images that are in two splits: identical pixels, or embeddings of at least the cosine `threshold`.

    The default embeddings are `thumbnails`. The embeddings of a network put all images of a class close together:
    concatenate them with thumbnails. Identical pairs come first, then the most similar.
    """
    if embeddings is None:
        embeddings = {name: thumbnails(dataset.images) for name, dataset in splits.items()}
    hashes = {name: [pixel_hash(image) for image in dataset.images] for name, dataset in splits.items()}
    duplicates = []
    for one, other in combinations(splits, 2):
        identical = _same_hashes(hashes[one], hashes[other])
        similarities = _similar(embeddings[one], embeddings[other], threshold) | dict.fromkeys(identical, 1.0)
        duplicates += [
            Duplicate(
                split=one,
                id=splits[one].ids[row],
                other_split=other,
                other_id=splits[other].ids[column],
                similarity=similarity,
                same_pixels=(row, column) in identical,
                same_label=bool(splits[one].labels[row] == splits[other].labels[column]),
            )
            for (row, column), similarity in similarities.items()
        ]
    return tuple(sorted(duplicates, key=lambda d: (not d.same_pixels, -d.similarity, d.split, d.id)))


def _similar(embeddings: np.ndarray, others: np.ndarray, threshold: float) -> dict[tuple[int, int], float]:
    """(row, column) -> cosine of every pair that reaches the threshold."""
    with config_context(working_memory=SEARCH_MEMORY):
        search = NearestNeighbors(metric="cosine").fit(others)
        distances, columns = search.radius_neighbors(embeddings, 1 - threshold)
    return {
        (row, int(column)): float(1 - distance)
        for row in range(len(embeddings))
        for column, distance in zip(columns[row], distances[row], strict=True)
    }


def _same_hashes(hashes: Sequence[str], others: Sequence[str]) -> set[tuple[int, int]]:
    columns: dict[str, list[int]] = {}
    for column, digest in enumerate(others):
        columns.setdefault(digest, []).append(column)
    return {(row, column) for row, digest in enumerate(hashes) for column in columns.get(digest, ())}


def pixel_hash(image: np.ndarray) -> str:
    """sha256 over shape and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def thumbnails(images: np.ndarray | Sequence[np.ndarray], side: int = 16) -> np.ndarray:
    """Embeddings without a network: each image resized to side x side, minus its mean colour (N, 3 side side)."""
    small = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in images]
    pixels = np.stack(small).astype(np.float32)  # (N, side, side, 3)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    return pixels.reshape(len(pixels), -1)


def concat_embeddings(*embeddings: np.ndarray) -> np.ndarray:
    """Concatenate embeddings (N, D1), (N, D2), ... so that the cosine is the mean of theirs."""
    return np.concatenate([normalize(rows) for rows in embeddings], axis=1)
