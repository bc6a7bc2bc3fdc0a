"""An image folder as a source: what is an image of which class and split, and what is skipped."""

import os
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitcifar.data.dataset import Source
from vitcifar.data.files import ImageFiles, is_image, is_system
from vitcifar.errors import DataError, listed

VALIDATION = ("val", "valid", "validation")  # names of the folder, in any case
NUM_NAMED = 3  # of the files that are skipped for one reason

# Why something is skipped: of one, of several.
SYSTEM_ENTRY = ("hidden or system file or folder", "hidden or system files and folders")
OTHER_FILE = ("file that is not an image", "files that are not images")
LOOSE = ("image outside the folders of the classes", "images outside the folders of the classes")
NESTED = ("folder inside the folder of a class", "folders inside the folder of a class")
DANGLING = ("link to nothing", "links to nothing")
UNKNOWN = ("folder that is no split", "folders that are no splits")
Skipped = dict[tuple[str, str], list[Path]]


class Folder(Source):
    """Image files in `<dir>/train/<class>/`, `<dir>/test/<class>/` and, for validation, possibly `<dir>/val/<class>/`.

    Names are compared, sorted and hashed in Unicode's composed form (NFC), whatever the file system stores. Warns of
    what is skipped. Images are decoded when they are used. With `test_only` the other parts are ignored.
    """

    def __init__(self, data_dir: Path, *, test_only: bool = False) -> None:
        root = data_dir.expanduser()
        skipped: Skipped = defaultdict(list)
        try:
            parts = _parts(root, ("test",) if test_only else ("train", "test"), skipped)
            classes = {part: _class_folders(folder, skipped) for part, folder in parts.items()}
            files = {
                part: {name: _image_files(f, skipped) for name, f in found.items()} for part, found in classes.items()
            }
        except OSError as error:
            raise DataError(f"{error.filename or root} cannot be read: {error.strerror}.") from error
        _say(root, skipped, parts)
        class_names = _class_names(parts, classes)
        if empty := [str(classes[part][name]) for part in parts for name in class_names if not files[part][name]]:
            raise DataError(f"No images in {listed(empty)}: put some directly into each folder.")
        self._paths, labels, ids = {}, {}, {}
        for part, found in files.items():
            images = [(f"{part}/{name}/{nfc(path.name)}", path) for name in class_names for path in found[name]]
            ids[part], self._paths[part] = tuple(id for id, _ in images), [path for _, path in images]
            labels[part] = np.repeat(
                np.arange(len(class_names), dtype=np.int64), [len(found[name]) for name in class_names]
            )
        super().__init__(class_names, labels, ids)

    def _images(self, part: str, indices: np.ndarray) -> ImageFiles:
        return ImageFiles(self._paths[part][index] for index in indices)


def nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _parts(root: Path, required: Sequence[str], skipped: Skipped) -> dict[str, Path]:
    """Part -> its folder: those required, and a validation part if there is one beside train."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}: name the image folder with --data-dir.")
    wanted = required if "train" not in required else ("train", "validation", "test")
    parts: dict[str, Path] = {}
    for entry in _entries(root, skipped):
        part = "validation" if entry.name.lower() in VALIDATION else entry.name
        if not entry.is_dir():
            if is_image(entry):
                skipped[LOOSE].append(entry)
        elif part not in ("train", "validation", "test"):
            skipped[UNKNOWN].append(entry)
        elif part in parts and part in wanted:
            raise DataError(
                f"{root} has two folders of validation images, {parts[part].name} and {entry.name}: keep one of them."
            )
        else:
            parts[part] = entry
    for part in required:
        if part not in parts:
            raise DataError(f"There is no folder {root / part}: expected {root / part}/<class>/<images>.")
    return {part: parts[part] for part in wanted if part in parts}


def _class_folders(folder: Path, skipped: Skipped) -> dict[str, Path]:
    """Class name -> its folder."""
    entries = _entries(folder, skipped)
    found: dict[str, Path] = {}
    for entry in entries:
        if not entry.is_dir():
            skipped[LOOSE if is_image(entry) else OTHER_FILE].append(entry)
        elif nfc(entry.name) in found:
            raise DataError(
                f"{folder} has two folders whose names look alike, {entry.name}: put their images into one."
            )
        else:
            found[nfc(entry.name)] = entry
    if not found:
        raise DataError(f"{folder} has no class folders: expected {folder}/<class>/<images>.")
    return found


def _image_files(folder: Path, skipped: Skipped) -> list[Path]:
    """The image files of a class, sorted by name."""
    images = []
    for entry in _entries(folder, skipped):
        if entry.is_dir():
            skipped[NESTED].append(entry)
        elif is_image(entry):
            images.append(entry)
        else:
            skipped[OTHER_FILE].append(entry)
    return images


def _entries(folder: Path, skipped: Skipped) -> list[Path]:
    """What is in a folder, sorted by name, without what systems leave there and without links to nothing."""
    names = sorted(os.listdir(folder), key=lambda name: (nfc(name), name))
    if broken := [name for name in names if name != name.encode(errors="replace").decode()]:
        raise DataError(
            f"{folder} has file names that are not valid UTF-8: rename {', '.join(map(ascii, broken[:5]))}."
        )
    kept: list[Path] = []
    system, dangling = skipped[SYSTEM_ENTRY], skipped[DANGLING]
    for name in names:
        entry = folder / name
        (system if is_system(name) else kept if entry.exists() else dangling).append(entry)
    return kept


def _say(root: Path, skipped: Skipped, parts: dict[str, Path]) -> None:
    """Warn of what is skipped, with its number and the first names, and of a validation part that is a folder."""
    texts = []
    for (one, several), paths in skipped.items():
        if paths:
            named = listed([path.relative_to(root).as_posix() for path in paths], NUM_NAMED)
            texts.append(f"{len(paths):,} {one if len(paths) == 1 else several} ({named})")
    if texts:
        warnings.warn(f"Skipped in {root}: {'; '.join(texts)}.", stacklevel=3)
    if "validation" in parts:
        warnings.warn(f"The validation images are those in {parts['validation']}, none of train.", stacklevel=3)


def _class_names(parts: dict[str, Path], classes: dict[str, dict[str, Path]]) -> tuple[str, ...]:
    """The class names, which must be the same in all parts."""
    first = next(iter(parts))
    for part in parts:
        differences = [
            f"{', '.join(sorted(classes[here].keys() - classes[there].keys()))} only in {parts[here].name}"
            for here, there in ((first, part), (part, first))
            if classes[here].keys() - classes[there].keys()
        ]
        if differences:
            raise DataError(f"The classes in {parts[first]} and {parts[part]} differ: {'; '.join(differences)}.")
    names = tuple(sorted(classes[first]))
    if len(names) < 2 and "train" in parts:
        raise DataError(f"{parts['train']} has one class, {names[0]}: a classifier needs at least 2.")
    return names
