"""CIFAR-10, read by torchvision's own code; the archive is downloaded completely or not at all."""

import contextlib
import http.client
import os
import shutil
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from vitcifar.data.dataset import Source
from vitcifar.data.download import STALL_SECONDS, socket_timeout, why_unreachable
from vitcifar.data.torchvision_compat import torchvision
from vitcifar.errors import DataError

Cifar10Reader = Any  # the class torchvision.datasets.CIFAR10, whose module has no types


class Cifar10(Source):
    """The 50,000 training and 10,000 test images of CIFAR-10, 32 x 32 pixels, in memory as uint8.

    `dataset` is the torchvision class that reads it. Raises DataError.
    """

    def __init__(self, data_dir: Path, dataset: Cifar10Reader = torchvision.datasets.CIFAR10) -> None:
        parts = _load(data_dir.expanduser(), dataset)
        labels = {part: np.array(loaded.targets, dtype=np.int64) for part, loaded in parts.items()}
        ids = {part: tuple(f"{part}/{index:05d}" for index in range(len(labels[part]))) for part in parts}
        super().__init__(parts["train"].classes, labels, ids)
        self._pixels = {part: loaded.data for part, loaded in parts.items()}  # (N, 32, 32, 3)

    def _images(self, part: str, indices: np.ndarray) -> np.ndarray:
        source = self._pixels[part]
        images = np.empty((len(indices), *source.shape[1:]), dtype=np.uint8)
        for row, index in enumerate(indices):  # the source is channels-first in memory: fancy indexing copies twice
            images[row] = source[index]
        return images


def _load(folder: Path, dataset: Cifar10Reader) -> dict[str, Any]:
    with contextlib.suppress(RuntimeError):  # torchvision: the files are missing or broken
        return _read(folder, dataset)
    if not _is_complete(folder, dataset) and (problem := why_unreachable(dataset.url)):  # before anything is written
        raise _unavailable(folder, dataset, f"{_host(dataset)} cannot be reached ({problem})")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".cifar10.lock"):  # of two processes, the second waits and then finds the archive
            if not _is_complete(folder, dataset):
                _download(folder, dataset)
            dataset(folder, download=True)  # only unpacks the complete archive, over a partial extraction
        return _read(folder, dataset)
    except OSError as error:
        message = f"CIFAR-10 cannot be stored in {folder} ({error}): name another folder with --data-dir."
        raise DataError(message) from error


def _read(folder: Path, dataset: Cifar10Reader) -> dict[str, Any]:
    return {"train": dataset(folder, train=True), "test": dataset(folder, train=False)}


def _is_complete(folder: Path, dataset: Cifar10Reader) -> bool:
    return bool(torchvision.datasets.utils.check_integrity(folder / dataset.filename, dataset.tgz_md5))


def _unavailable(folder: Path, dataset: Cifar10Reader, problem: str) -> DataError:
    archive = folder / dataset.filename
    state = f"{archive} is broken or incomplete" if archive.exists() else f"CIFAR-10 is not in {folder}"
    cure = f"put a complete {archive.name} into {folder}, or type --preset digits, which needs no network"
    return DataError(f"{state}, and {problem}: {cure}.")


def _host(dataset: Cifar10Reader) -> str:
    return urllib.parse.urlsplit(str(dataset.url)).netloc


def _download(folder: Path, dataset: Cifar10Reader) -> None:
    """Download to a temporary folder, then rename: an interrupted download never looks like a complete one."""
    partial = folder / ".cifar10-download"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with socket_timeout(STALL_SECONDS):
            torchvision.datasets.utils.download_url(dataset.url, partial, dataset.filename, dataset.tgz_md5)
        os.replace(partial / dataset.filename, folder / dataset.filename)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        problem = f"the download from {_host(dataset)} failed ({str(error).rstrip('.') or type(error).__name__})"
        raise _unavailable(folder, dataset, problem) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
