"""Labelled images in memory, uint8, the sources they are read from, and the fingerprint of their content."""

import abc
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vitcifar.progress import bar


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset:
    """N images: one array (N, H, W, 3) when all have one size, else a sequence of (H, W, 3); always uint8.

    A sequence may decode its images each time they are used: take each once, or in slices.

    `labels` are int64 (N,), indices into `class_names`; `ids` name the source of each image.
    """

    images: np.ndarray | Sequence[np.ndarray]
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.labels) == len(self.ids), "as many images as labels and ids"
        assert self.labels.dtype == np.int64, f"labels are {self.labels.dtype}"

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ImageDataset":
        """The images at these indices, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        images = self.images
        images = images[indices] if isinstance(images, np.ndarray) else stack([images[index] for index in indices])
        ids = tuple(self.ids[index] for index in indices)
        return ImageDataset(images=images, labels=self.labels[indices], class_names=self.class_names, ids=ids)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The fingerprint of these images, taken once: images that are decoded on demand must not change."""
        return fingerprint(self)

    def counts(self) -> dict[str, int]:
        """Class name -> number of images."""
        counted = np.bincount(self.labels, minlength=len(self.class_names))
        return dict(zip(self.class_names, counted.tolist(), strict=True))


class Source(abc.ABC):
    """Images that are read on demand, in parts; labels and ids are known at once.

    The parts are "train" and "test"; "validation" where the source sets images apart for it, else train gives them.

    `labels` are int64 (N,), indices into `class_names`; `ids` are a unique name of each image, in the same order.
    """

    def __init__(
        self, class_names: Iterable[str], labels: Mapping[str, np.ndarray], ids: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.class_names = tuple(class_names)
        self._labels, self._ids = labels, ids

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self._ids)

    def labels(self, part: str) -> np.ndarray:
        return self._labels[part]

    def ids(self, part: str) -> tuple[str, ...]:
        return self._ids[part]

    def read(self, part: str, indices: Sequence[int] | np.ndarray) -> ImageDataset:
        """The images at these indices of the part, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        ids = tuple(self._ids[part][index] for index in indices)
        images, labels = self._images(part, indices), self._labels[part][indices]
        return ImageDataset(images=images, labels=labels, class_names=self.class_names, ids=ids)

    @abc.abstractmethod
    def _images(self, part: str, indices: np.ndarray) -> np.ndarray | Sequence[np.ndarray]: ...


def stack(images: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """One array when all images have one size, else the unchanged list."""
    same = images and all(image.shape == images[0].shape for image in images)
    return np.stack(images) if same else images  # (N, H, W, 3)


def group_by_size(images: Iterable[np.ndarray], max_batch: int, *, max_pixels: int | None = None) -> list[list[int]]:
    """Indices of the images (H, W, C) in batches of one size: at most `max_batch` images and `max_pixels` pixels each.

    An image of more than `max_pixels` pixels is a batch of its own. Indices of one size stay in order.
    """
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(index)
    batches = []
    for (height, width, *_), indices in by_size.items():
        length = max_batch if max_pixels is None else max(1, min(max_batch, max_pixels // (height * width)))
        batches += [indices[start : start + length] for start in range(0, len(indices), length)]
    return batches


def fingerprint(dataset: ImageDataset) -> str:
    """sha256 over the class names and, for each image in order, over label, shape and every pixel.

    Ids and memory layout (array or list) do not change it.
    """
    # The salt is part of every recorded fingerprint: it never changes.
    digest = hashlib.sha256(json.dumps(["vitcifar pictures 1", dataset.class_names]).encode())
    images = bar(dataset.images, "Fingerprint", "images")
    for image, label in zip(images, dataset.labels, strict=True):
        assert image.dtype == np.uint8, f"pixels are {image.dtype}"
        digest.update(np.array([label, *image.shape], dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def pixel_hash(image: np.ndarray) -> str:
    """sha256 over the shape and every pixel of one image: the same image has the same hash in every lossless format."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
