"""Data sources: CIFAR-10, an image folder, or scikit-learn's digits; each has a train and a test part."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from vitcifar.data.cifar10 import Cifar10
from vitcifar.data.dataset import ImageDataset, stack
from vitcifar.data.image import read_image
from vitcifar.errors import DataError

SOURCES = ("cifar10", "folder", "digits")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
DIGITS_TEST_PER_CLASS = 40


class Source(Protocol):
    """Labels and ids are known at once; images are read on demand. `part` is "train" or "test"."""

    name: str
    class_names: tuple[str, ...]

    def labels(self, part: str) -> np.ndarray:
        """int64 (N,), in the order of `ids`."""

    def ids(self, part: str) -> tuple[str, ...]:
        """A unique name of each image."""

    def read(self, part: str, indices: Sequence[int] | np.ndarray) -> ImageDataset:
        """The images at these indices of the part, in this order."""


def open_source(name: str, data_dir: Path) -> Source:
    """Open the source `cifar10`, `folder` or `digits`. Raises DataError when it is missing."""
    if name == "cifar10":
        return Cifar10(data_dir)
    if name == "folder":
        return Folder(data_dir)
    if name == "digits":
        return Digits()
    raise DataError(f"There is no data source {name!r}: choose one of {', '.join(SOURCES)}.")


class Digits:
    """The 1,797 handwritten digits that come with scikit-learn: 8 x 8 pixels, grey, no network.

    The test part is fixed: every fourth image up to 40 per class, so that it covers all writers.
    """

    name = "digits"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = ((digits.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)  # 0..16 -> 0..255
        self.class_names = tuple(str(name) for name in digits.target_names)
        self._images: np.ndarray = np.repeat(grey[..., None], 3, axis=3)  # (1797, 8, 8, 3)
        self._labels: np.ndarray = digits.target.astype(np.int64)
        classes = [np.flatnonzero(self._labels == label) for label in range(len(self.class_names))]
        test = np.sort(np.concatenate([indices[::4][:DIGITS_TEST_PER_CLASS] for indices in classes]))
        self._indices = {"train": np.setdiff1d(np.arange(len(self._labels)), test), "test": test}

    def labels(self, part: str) -> np.ndarray:
        labels: np.ndarray = self._labels[self._indices[part]]
        return labels

    def ids(self, part: str) -> tuple[str, ...]:
        return tuple(f"digits/{index:04d}" for index in self._indices[part])

    def read(self, part: str, indices: Sequence[int] | np.ndarray) -> ImageDataset:
        chosen = self._indices[part][np.asarray(indices, dtype=np.int64)]
        ids = tuple(f"digits/{index:04d}" for index in chosen)
        return ImageDataset(
            images=self._images[chosen], labels=self._labels[chosen], class_names=self.class_names, ids=ids
        )


class Folder:
    """Image files in `<dir>/train/<class>/` and `<dir>/test/<class>/`, of any classes and sizes."""

    name = "folder"

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.expanduser()
        if not self._dir.is_dir():
            raise DataError(f"There is no folder {self._dir}: name the image folder with --data-dir.")
        classes = {part: _class_folders(self._dir, part) for part in ("train", "test")}
        self.class_names = _class_names(self._dir, classes)
        self._ids: dict[str, tuple[str, ...]] = {}
        self._labels: dict[str, np.ndarray] = {}
        for part in classes:
            files = [_image_files(self._dir / part / name) for name in self.class_names]
            self._ids[part] = tuple(
                f"{part}/{name}/{file}" for name, inside in zip(self.class_names, files, strict=True) for file in inside
            )
            self._labels[part] = np.repeat(np.arange(len(files), dtype=np.int64), [len(inside) for inside in files])

    def labels(self, part: str) -> np.ndarray:
        return self._labels[part]

    def ids(self, part: str) -> tuple[str, ...]:
        return self._ids[part]

    def read(self, part: str, indices: Sequence[int] | np.ndarray) -> ImageDataset:
        indices = np.asarray(indices, dtype=np.int64)
        ids = tuple(self._ids[part][index] for index in indices)
        with ThreadPoolExecutor() as pool:  # decoding releases the GIL
            reading = pool.map(read_image, (self._dir / id for id in ids))
            images = list(tqdm(reading, total=len(ids), desc=f"Reading {part}", unit="image", disable=None))
        return ImageDataset(
            images=stack(images), labels=self._labels[part][indices], class_names=self.class_names, ids=ids
        )


def _class_folders(root: Path, part: str) -> set[str]:
    folder = root / part
    expected = f"expected {folder}/<class>/<images>"
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: {expected}.")
    names = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if not names:
        raise DataError(f"{folder} has no class folders: {expected}.")
    return names


def _class_names(root: Path, classes: dict[str, set[str]]) -> tuple[str, ...]:
    """The class names, which must be the same in both parts."""
    differences = [
        f"{', '.join(sorted(classes[here] - classes[there]))} only in {here}"
        for here, there in (("train", "test"), ("test", "train"))
        if classes[here] - classes[there]
    ]
    if differences:
        raise DataError(f"The classes in {root}/train and {root}/test differ: {'; '.join(differences)}.")
    names = tuple(sorted(classes["train"]))
    if len(names) < 2:
        raise DataError(f"{root}/train has one class, {names[0]}: a classifier needs at least 2.")
    return names


def _image_files(folder: Path) -> list[str]:
    """The sorted names of the image files in a folder; warns about skipped files."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    names = [name for name in names if name.lower() not in SYSTEM_FILES]
    images = [name for name in names if name.lower().endswith(EXTENSIONS)]
    others = [name for name in names if not name.lower().endswith(EXTENSIONS)]
    if not images:
        raise DataError(f"{folder} has no images: expected files that end with {', '.join(EXTENSIONS)}.")
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warnings.warn(f"Skipped in {folder}, not an image by file extension: {others[0]}{more}.", stacklevel=2)
    return images
