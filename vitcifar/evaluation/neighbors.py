"""Images that are alike: the nearest training images of an answer, and duplicates between splits.

Shapes: N images, D features, embeddings (N, D).
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from PIL import Image

from vitcifar.data.dataset import ImageDataset

CHUNK = 1024  # rows compared at once: bounds memory at CHUNK x N similarities


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicate:
    """One image of a split that is also in another; `similarity` 1 with `same_pixels` = bit for bit the same."""

    split: str
    id: str
    other_split: str
    other_id: str
    similarity: float
    same_pixels: bool
    same_label: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NearestImages:
    """Of the images at `places`, the training images most alike, best first: indices and cosines (places, k)."""

    places: np.ndarray
    train: ImageDataset
    indices: np.ndarray
    cosines: np.ndarray


def nearest_training(
    places: np.ndarray, embeddings: np.ndarray, train: ImageDataset, train_embeddings: np.ndarray, k: int = 5
) -> NearestImages:
    """The k training images nearest to each image at `places`; embeddings are (N, D) and (N_train, D)."""
    indices, cosines = nearest(embeddings[places], train_embeddings, k)
    return NearestImages(places=places, train=train, indices=indices, cosines=cosines)


def nearest(queries: np.ndarray, embeddings: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The k embeddings of largest cosine to each query, best first: (places (Q, k), cosines (Q, k))."""
    k = min(k, len(embeddings))
    places, cosines = [], []
    for start, block in _cosines(queries, embeddings):
        del start
        order = np.argsort(-block, axis=1, kind="stable")[:, :k]
        places.append(order)
        cosines.append(np.take_along_axis(block, order, axis=1))
    return np.concatenate(places), np.concatenate(cosines)


def find_duplicates(
    splits: Mapping[str, ImageDataset],
    embeddings: Mapping[str, np.ndarray] | None = None,
    *,
    threshold: float = 0.99,
) -> tuple[Duplicate, ...]:
    """Images of one split that are also in another: the same pixels, or embeddings of at least this cosine.

    Without embeddings, near-duplicates are found by `thumbnails`, for which 0.99 is a good limit. A network puts all
    images of a class close together, so give `joined` embeddings rather than its own alone. Most alike first.
    """
    if embeddings is None:
        embeddings = {name: thumbnails(dataset.images) for name, dataset in splits.items()}
    hashes = {name: [pixel_hash(image) for image in dataset.images] for name, dataset in splits.items()}
    found = []
    for one, other in combinations(splits, 2):
        pairs = _same_pixels(hashes[one], hashes[other])
        cosine = dict.fromkeys(pairs, 1.0)
        for start, block in _cosines(embeddings[one], embeddings[other]):
            for row, column in np.argwhere(block >= threshold):
                cosine.setdefault((start + int(row), int(column)), float(block[row, column]))
        found += [
            Duplicate(
                split=one,
                id=splits[one].ids[here],
                other_split=other,
                other_id=splits[other].ids[there],
                similarity=similarity,
                same_pixels=(here, there) in pairs,
                same_label=bool(splits[one].labels[here] == splits[other].labels[there]),
            )
            for (here, there), similarity in cosine.items()
        ]
    return tuple(sorted(found, key=lambda d: (not d.same_pixels, -d.similarity, d.split, d.id)))


def pixel_hash(image: np.ndarray) -> str:
    """Equal for two images of the same shape and pixels, and for no others."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def thumbnails(images: np.ndarray | Sequence[np.ndarray], side: int = 16) -> np.ndarray:
    """Embeddings without a network: each image at side x side pixels, its mean colour taken away (N, 3 side side)."""
    small = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in images]
    pixels = np.stack(small).astype(np.float32)  # (N, side, side, 3)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    return pixels.reshape(len(pixels), -1)


def concat_embeddings(*embeddings: np.ndarray) -> np.ndarray:
    """One embedding of several (N, D1), (N, D2), ...: its cosines are the means of theirs, so all must agree."""
    return np.concatenate([_unit(rows) for rows in embeddings], axis=1)


def _same_pixels(hashes: Sequence[str], others: Sequence[str]) -> set[tuple[int, int]]:
    places: dict[str, list[int]] = {}
    for place, digest in enumerate(others):
        places.setdefault(digest, []).append(place)
    return {(here, there) for here, digest in enumerate(hashes) for there in places.get(digest, ())}


def _cosines(queries: np.ndarray, embeddings: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Cosines of CHUNK queries at a time with all embeddings: (first query, (chunk, N))."""
    queries, embeddings = _unit(queries), _unit(embeddings)
    for start in range(0, len(queries), CHUNK):
        yield start, queries[start : start + CHUNK] @ embeddings.T


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one and is like no other."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
