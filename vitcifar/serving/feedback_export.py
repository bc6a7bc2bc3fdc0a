"""Feedback as images that a dataset or the golden images of a policy gain, each with where it comes from."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitcifar.data.dataset import ImageDataset, fingerprint, pixel_hash
from vitcifar.data.files import ImageFiles, is_image
from vitcifar.data.folder import VALIDATION, nfc
from vitcifar.data.image import read_image
from vitcifar.errors import DataError
from vitcifar.evaluation.duplicates import is_near_duplicate, thumbnails
from vitcifar.serving.feedback import Entry, FeedbackStore

PROVENANCE_FILE = "feedback.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export did: images by class, the fingerprint of all that came from feedback, and what it left out."""

    folder: Path
    counts: Mapping[str, int]  # class -> images written now
    num_known: int  # images of an earlier export that are there already
    fingerprint: str
    left_out: Mapping[str, Sequence[str]]  # reason -> hashes of images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """Images that are in use already, such as a version's test images: an image like one of them is left out."""

    name: str
    images: np.ndarray | Sequence[np.ndarray]


def export_feedback(
    store: FeedbackStore, entries: Sequence[Entry], folder: Path, *, golden: bool, known: Iterable[Known] = ()
) -> Exported:
    """Write the images whose true class is known into `folder`/train/CLASS, or `folder`/CLASS as golden images.

    An image that was marked in different ways, or is like one of the `known` or of the folder's own test and
    validation images, is left out: no test image is ever trained on. `feedback.json` says where each image comes from.
    Raises DataError when the folder cannot be written.
    """
    target = folder if golden else folder / "train"
    marked: dict[str, list[Entry]] = {}
    for entry in entries:
        marked.setdefault(entry.image_hash, []).append(entry)
    left_out: dict[str, list[str]] = {}
    chosen: dict[str, str] = {}  # hash -> true class
    classes = None if golden or not target.is_dir() else _class_folders(target)
    for image_hash, marks in marked.items():
        if reason := _unusable(marks, classes):
            left_out.setdefault(reason, []).append(image_hash)
        else:
            chosen[image_hash] = str(marks[0].truth)
    small = {one: thumbnails([read_image(store.image(one), one)])[0] for one in chosen}
    for image_hash, name in alike(small, [*known, *([] if golden else _held_out(folder))]).items():
        left_out.setdefault(f"like one of {name}", []).append(image_hash)
        del chosen[image_hash]
    try:
        return _write(store, target, folder, {one: (truth, marked[one]) for one, truth in chosen.items()}, left_out)
    except OSError as error:
        place = error.filename or folder
        raise DataError(f"{place} cannot be written ({error.strerror}): name another folder.") from error


def _unusable(marks: Sequence[Entry], classes: Collection[str] | None) -> str:
    """Why the image of these entries cannot be exported ("" = it can)."""
    truths = {entry.truth for entry in marks}
    if len(truths) > 1:
        return "marked in different ways"
    truth = marks[0].truth
    if truth is None:
        return "of none of the classes"
    if not marks[0].has_image:
        return "kept without their image"
    if Path(truth).name != truth or truth.startswith(".") or not truth.isprintable():
        return "of a class whose name is no folder"
    return "" if classes is None or nfc(truth) in classes else "of a class that the folder does not have"


def _class_folders(target: Path) -> dict[str, Path]:
    """Class name in Unicode's composed form -> its folder, as it is spelled on disk."""
    return {nfc(path.name): path for path in target.iterdir() if path.is_dir()} if target.is_dir() else {}


def _held_out(folder: Path) -> list[Known]:
    """The test and validation images that are in a dataset's folder."""
    parts = [path for path in sorted(folder.glob("*")) if path.name == "test" or path.name.lower() in VALIDATION]
    found = {part: [path for path in sorted(part.glob("*/*")) if path.is_file() and is_image(path)] for part in parts}
    return [Known(name=str(part), images=ImageFiles(paths)) for part, paths in found.items() if paths]


def alike(small: Mapping[str, np.ndarray], known: Iterable[Known]) -> dict[str, str]:
    """The images that are identical to a known one, or nearly: hash -> name. `small` is hash -> thumbnail (768,)."""
    rest, found = list(small), dict[str, str]()
    for one in known:
        same = {pixel_hash(image) for image in one.images}
        near = is_near_duplicate(np.array([small[image_hash] for image_hash in rest]), thumbnails(one.images))
        found |= {
            image_hash: one.name
            for image_hash, is_near in zip(rest, near, strict=True)
            if is_near or image_hash in same
        }
        rest = [image_hash for image_hash in rest if image_hash not in found]
    return found


def _write(
    store: FeedbackStore,
    target: Path,
    folder: Path,
    chosen: Mapping[str, tuple[str, Sequence[Entry]]],
    left_out: Mapping[str, Sequence[str]],
) -> Exported:
    """Write the images and, last, their provenance together with that of an earlier export."""
    folder.mkdir(parents=True, exist_ok=True)
    record, counts, num_known = folder / PROVENANCE_FILE, dict[str, int](), 0
    images, folders = _read_record(record), _class_folders(target)
    for image_hash, (truth, entries) in chosen.items():
        path = folders.get(nfc(truth), target / truth) / f"feedback-{image_hash[:20]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            num_known += 1
        else:
            write_whole(path, store.image(image_hash))
            counts[truth] = counts.get(truth, 0) + 1
        marks = [dataclasses.asdict(entry) for entry in entries]
        for mark in marks:
            del mark["image_hash"], mark["has_image"]
        images[path.relative_to(folder).as_posix()] = {"image_hash": image_hash, "truth": truth, "feedback": marks}
    images = {name: images[name] for name in sorted(images) if (folder / name).is_file()}
    digest = _fingerprint(folder, images)
    write_whole(record, json.dumps({"fingerprint": digest, "images": images}, indent=1, ensure_ascii=False).encode())
    return Exported(folder=target, counts=counts, num_known=num_known, fingerprint=digest, left_out=left_out)


def _read_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes())["images"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is not the record of an export of feedback: name another folder.") from None


def _fingerprint(folder: Path, images: Mapping[str, Any]) -> str:
    """The fingerprint of all exported images, as a dataset in the order of their names."""
    class_names = tuple(sorted({one["truth"] for one in images.values()}))
    labels = np.array([class_names.index(one["truth"]) for one in images.values()], dtype=np.int64)
    files = ImageFiles(folder / name for name in images)
    return fingerprint(ImageDataset(images=files, labels=labels, class_names=class_names, ids=tuple(images)))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
