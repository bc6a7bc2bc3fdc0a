"""Data sources: CIFAR-10, an image folder, or scikit-learn's digits."""

from pathlib import Path

import numpy as np

from vitcifar.data.dataset import Source
from vitcifar.data.folder import Folder
from vitcifar.errors import DataError

SOURCES = ("cifar10", "folder", "digits")
DIGITS_TEST_PER_CLASS = 40


def open_source(name: str, data_dir: Path, *, test_only: bool = False) -> Source:
    """Open the source `cifar10`, `folder` or `digits`. Raises DataError when it is missing.

    `test_only`: its other parts may be missing.
    """
    if name == "cifar10":
        from vitcifar.data.cifar10 import Cifar10  # which imports torch

        return Cifar10(data_dir)
    if name == "folder":
        return Folder(data_dir, test_only=test_only)
    if name == "digits":
        return Digits()
    raise DataError(f"There is no data source {name!r}: choose one of {', '.join(SOURCES)}.")


def location(name: str, data_dir: Path) -> Path:
    """Where the images of a source lie: its folder, or scikit-learn's own file of the digits."""
    if name != "digits":
        return data_dir.absolute()
    import sklearn.datasets

    return Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz"


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
