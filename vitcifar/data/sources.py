"""Data sources: CIFAR-10, an image folder, or scikit-learn's digits; each has a train and a test part."""

import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vitcifar.data.dataset import Source, stack
from vitcifar.data.image import read_image
from vitcifar.errors import DataError, ImageError

SOURCES = ("cifar10", "folder", "digits")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
SYSTEM_FOLDERS = ("@eadir", "__macosx", "lost+found", "#recycle", "$recycle.bin", "system volume information")
MAX_NAMED = 20  # broken files in a message
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
    """Image files in `<dir>/train/<class>/` and `<dir>/test/<class>/`, of any classes and sizes.

    Names are compared, sorted and hashed in Unicode's composed form (NFC), whatever the file system stores.
    """

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.expanduser()
        if not self._dir.is_dir():
            raise DataError(f"There is no folder {self._dir}: name the image folder with --data-dir.")
        classes = {part: _class_folders(self._dir, part) for part in ("train", "test")}
        class_names = _class_names(self._dir, classes)
        labels, ids = {}, {}
        self._paths: dict[str, Path] = {}  # by id
        for part, folders in classes.items():
            files = {name: _image_files(folders[name]) for name in class_names}
            paths = {f"{part}/{name}/{_nfc(path.name)}": path for name, inside in files.items() for path in inside}
            self._paths |= paths
            ids[part] = tuple(paths)
            labels[part] = np.repeat(np.arange(len(files), dtype=np.int64), [len(inside) for inside in files.values()])
        super().__init__(class_names, labels, ids)

    def _images(self, part: str, indices: np.ndarray) -> np.ndarray | list[np.ndarray]:
        with ThreadPoolExecutor() as pool:  # decoding releases the GIL
            reading = pool.map(_try_read, (self._paths[self._ids[part][index]] for index in indices))
            read = list(tqdm(reading, total=len(indices), desc=f"Reading {part}", unit="image", disable=None))
        images = [image for image in read if isinstance(image, np.ndarray)]
        if errors := [image for image in read if isinstance(image, ImageError)]:
            more = f" And {len(errors) - MAX_NAMED} more." if len(errors) > MAX_NAMED else ""
            raise ImageError(" ".join(str(error) for error in errors[:MAX_NAMED]) + more)
        return stack(images)


def _try_read(path: Path) -> np.ndarray | ImageError:
    """The image, or why it cannot be used: all broken files of a dataset are named at once."""
    try:
        return read_image(path)
    except ImageError as error:
        return error


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _class_folders(root: Path, part: str) -> dict[str, Path]:
    """The folders of the classes by name."""
    folder = root / part
    expected = f"expected {folder}/<class>/<images>"
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: {expected}.")
    folders = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if skipped := sorted(entry.name for entry in folders if entry.name.lower() in SYSTEM_FOLDERS):
        warnings.warn(
            f"Skipped in {folder}, not a class but a folder of the system: {', '.join(skipped)}.", stacklevel=2
        )
    found = {_nfc(entry.name): entry for entry in folders if entry.name not in skipped}
    if not found:
        raise DataError(f"{folder} has no class folders: {expected}.")
    return found


def _class_names(root: Path, classes: dict[str, dict[str, Path]]) -> tuple[str, ...]:
    """The class names, which must be the same in both parts."""
    differences = [
        f"{', '.join(sorted(classes[here].keys() - classes[there].keys()))} only in {here}"
        for here, there in (("train", "test"), ("test", "train"))
        if classes[here].keys() - classes[there].keys()
    ]
    if differences:
        raise DataError(f"The classes in {root}/train and {root}/test differ: {'; '.join(differences)}.")
    names = tuple(sorted(classes["train"]))
    if len(names) < 2:
        raise DataError(f"{root}/train has one class, {names[0]}: a classifier needs at least 2.")
    return names


def _image_files(folder: Path) -> list[Path]:
    """The image files in a folder, sorted by name; warns about skipped files."""
    names = sorted((entry.name for entry in folder.iterdir() if not entry.name.startswith(".")), key=_nfc)
    if broken := [name for name in names if name != name.encode(errors="replace").decode()]:
        raise DataError(
            f"{folder} has file names that are not valid UTF-8: rename {', '.join(map(ascii, broken[:5]))}."
        )
    names = [name for name in names if name.lower() not in SYSTEM_FILES]
    images = [name for name in names if name.lower().endswith(EXTENSIONS)]
    others = [name for name in names if not name.lower().endswith(EXTENSIONS)]
    if not images:
        raise DataError(f"{folder} has no images: expected files that end with {', '.join(EXTENSIONS)}.")
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warnings.warn(f"Skipped in {folder}, not an image by file extension: {others[0]}{more}.", stacklevel=2)
    return [folder / name for name in images]
