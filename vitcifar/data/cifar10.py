"""CIFAR-10 through torchvision's own loading code: found, unpacked, or downloaded whole or not at all."""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.download import STALL_SECONDS, socket_timeout, why_unreachable
from vitcifar.errors import DataError


class Cifar10:
    """The 50,000 training and 10,000 test images of CIFAR-10, 32 x 32 pixels, kept in memory as uint8.

    `dataset` is the torchvision class to read with (None = torchvision.datasets.CIFAR10).
    """

    name = "cifar10"

    def __init__(self, data_dir: Path, dataset: Any = None) -> None:
        if dataset is None:
            from vitcifar.data.torchvision_compat import torchvision

            dataset = torchvision.datasets.CIFAR10
        parts = _load(data_dir.expanduser(), dataset)
        self.class_names = tuple(parts["train"].classes)
        self._images = {part: loaded.data for part, loaded in parts.items()}  # (N, 32, 32, 3)
        self._labels = {part: np.array(loaded.targets, dtype=np.int64) for part, loaded in parts.items()}

    def labels(self, part: str) -> np.ndarray:
        return self._labels[part]

    def ids(self, part: str) -> tuple[str, ...]:
        return tuple(f"{part}/{index:05d}" for index in range(len(self._labels[part])))

    def read(self, part: str, indices: Sequence[int] | np.ndarray) -> ImageDataset:
        indices = np.asarray(indices, dtype=np.int64)
        source = self._images[part]
        images = np.empty((len(indices), *source.shape[1:]), dtype=np.uint8)
        for row, index in enumerate(indices):  # one copy: the source lies planes first, and indexing would copy twice
            images[row] = source[index]
        ids = tuple(f"{part}/{index:05d}" for index in indices)
        return ImageDataset(images=images, labels=self._labels[part][indices], class_names=self.class_names, ids=ids)


def _load(folder: Path, dataset: Any) -> dict[str, Any]:
    try:
        return _read(folder, dataset)
    except RuntimeError:  # torchvision's word for images that are not there, or not whole
        pass
    _check_obtainable(folder, dataset)  # before the first thing is written
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".cifar10.lock"):  # of two that start at once, one waits and then finds the archive
            if not _is_whole(folder, dataset):
                _download(folder, dataset)
            dataset(folder, download=True)  # the archive is whole: this only unpacks it, over anything half unpacked
        return _read(folder, dataset)
    except OSError as error:
        raise DataError(f"CIFAR-10 cannot be put into {folder}: {error}.") from error


def _read(folder: Path, dataset: Any) -> dict[str, Any]:
    return {"train": dataset(folder, train=True), "test": dataset(folder, train=False)}


def _is_whole(folder: Path, dataset: Any) -> bool:
    archive = folder / dataset.filename
    return archive.is_file() and _md5(archive) == dataset.tgz_md5


def _check_obtainable(folder: Path, dataset: Any) -> None:
    if not _is_whole(folder, dataset):
        problem = why_unreachable(dataset.url)
        if problem:
            raise _cannot_have(folder, dataset, f"{_host(dataset)} cannot be reached ({problem})")


def _cannot_have(folder: Path, dataset: Any, problem: str) -> DataError:
    archive = folder / dataset.filename
    state = f"{archive} is broken or not whole" if archive.exists() else f"CIFAR-10 is not in {folder}"
    cure = f"put a whole {archive.name} into {folder}, or type --preset digits, which needs no network"
    return DataError(f"{state}, and {problem}: {cure}.")


def _host(dataset: Any) -> str:
    return urllib.parse.urlsplit(dataset.url).netloc


def _download(folder: Path, dataset: Any) -> None:
    """Into a folder beside, then one rename: a download that is cut off never lies where the next try looks."""
    from vitcifar.data.torchvision_compat import torchvision

    beside = folder / ".cifar10-download"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with socket_timeout(STALL_SECONDS):
            torchvision.datasets.utils.download_url(dataset.url, beside, dataset.filename, dataset.tgz_md5)
        os.replace(beside / dataset.filename, folder / dataset.filename)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        problem = f"the download from {_host(dataset)} failed ({str(error).rstrip('.') or type(error).__name__})"
        raise _cannot_have(folder, dataset, problem) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
