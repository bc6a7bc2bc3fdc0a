"""Data sources: CIFAR-10, an image folder, or scikit-learn's digits; each has a train and a test part."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vitcifar.data.dataset import Source, stack
from vitcifar.data.image import read_image
from vitcifar.errors import DataError

SOURCES = ("cifar10", "folder", "digits")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
DIGITS_TEST_PER_CLASS = 40


def open_source(name: str, data_dir: Path) -> Source:
    """Open the source `cifar10`, `folder` or `digits`. Raises DataError when it is missing."""
    if name == "cifar10":
        from vitcifar.data.cifar10 import Cifar10  # which imports torch

        return Cifar10(data_dir)
    if name == "folder":
        return Folder(data_dir)
    if name == "digits":
        return Digits()
    raise DataError(f"There is no data source {name!r}: choose one of {', '.join(SOURCES)}.")


class Digits(Source):
    """The 1,797 handwritten digits that come with scikit-learn: 8 x 8 pixels, grey, no network.

    The test part is fixed: every fourth image up to 40 per class, so that it covers all writers.
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = ((digits.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)  # 0..16 -> 0..255
        pixels: np.ndarray = np.repeat(grey[..., None], 3, axis=3)  # (1797, 8, 8, 3)
        labels = digits.target.astype(np.int64)
        classes = [np.flatnonzero(labels == label) for label in range(len(digits.target_names))]
        test = np.sort(np.concatenate([indices[::4][:DIGITS_TEST_PER_CLASS] for indices in classes]))
        parts = {"train": np.setdiff1d(np.arange(len(labels)), test), "test": test}
        ids = {part: tuple(f"digits/{index:04d}" for index in chosen) for part, chosen in parts.items()}
        super().__init__(map(str, digits.target_names), {part: labels[chosen] for part, chosen in parts.items()}, ids)
        self._pixels = {part: pixels[chosen] for part, chosen in parts.items()}

    def _images(self, part: str, indices: np.ndarray) -> np.ndarray:
        return np.asarray(self._pixels[part][indices])


class Folder(Source):
    """Image files in `<dir>/train/<class>/` and `<dir>/test/<class>/`, of any classes and sizes."""

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.expanduser()
        if not self._dir.is_dir():
            raise DataError(f"There is no folder {self._dir}: name the image folder with --data-dir.")
        classes = {part: _class_folders(self._dir, part) for part in ("train", "test")}
        class_names = _class_names(self._dir, classes)
        labels, ids = {}, {}
        for part in classes:
            files = {name: _image_files(self._dir / part / name) for name in class_names}
            ids[part] = tuple(f"{part}/{name}/{file}" for name, inside in files.items() for file in inside)
            labels[part] = np.repeat(np.arange(len(files), dtype=np.int64), [len(inside) for inside in files.values()])
        super().__init__(class_names, labels, ids)

    def _images(self, part: str, indices: np.ndarray) -> np.ndarray | list[np.ndarray]:
        with ThreadPoolExecutor() as pool:  # decoding releases the GIL
            reading = pool.map(read_image, (self._dir / self._ids[part][index] for index in indices))
            images = tqdm(reading, total=len(indices), desc=f"Reading {part}", unit="image", disable=None)
            return stack(list(images))


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
