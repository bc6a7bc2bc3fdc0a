"""What a version says of the images of a folder, their embeddings among it: computed once, and kept on disk.

The features that trainings keep (training/feature_cache.py) are of PyTorch's network and named after all images
together. These are of the ONNX model, without torch, and each image is known by its file: of a folder that grows, only
the new files are read. They lie in the same folder of the cache, within the same limit.
Shapes: N images, K classes, D the width of an embedding.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vitcifar.cache import PARTIAL_PREFIX, features_dir, prune_features
from vitcifar.data.dataset import pixel_hash
from vitcifar.data.image import read_image
from vitcifar.errors import DataError, ImageError, reason_of
from vitcifar.evaluation.calibration import softmax
from vitcifar.evaluation.duplicates import thumbnails
from vitcifar.inference.machine import available_cores
from vitcifar.progress import bar, notify
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.score import IMAGES_PER_TASK, bounded_map
from vitcifar.serving.tables import find_inputs

ARRAYS = ("probabilities", "embeddings", "thumbnails")
Stamp = tuple[str, int, int]  # what tells that a file is still the same: its path in the folder, size, and time in ns
Row = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # the hash of the pixels, and one row of each of ARRAYS


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """The images of a folder that can be read, and a sentence for each file that cannot."""

    paths: tuple[str, ...]
    hashes: tuple[str, ...]  # of the pixels
    probabilities: np.ndarray  # (N, K), calibrated
    embeddings: np.ndarray  # (N, D)
    thumbnails: np.ndarray  # (N, 768), as of evaluation/duplicates.py
    errors: dict[str, str]  # path -> sentence


def embed_folder(model: LoadedModel, folder: Path, *, max_bytes: int) -> Embedded:
    """Read and classify every image of a folder, at any depth, in the order of their paths.

    `model` should use one thread: as many images as there are cores are decoded and classified at a time. What was
    computed is kept, also when it is interrupted, if all features in the cache take at most `max_bytes` (0 = kept
    nowhere). Raises DataError for a folder that does not exist or holds no images.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: name one that holds images.")
    stamps = [stamp(folder, path) for path in find_inputs([str(folder)])]
    name = hashlib.sha256(json.dumps([model.digest, os.path.abspath(folder)]).encode()).hexdigest()
    cache = features_dir() / f"{name}.safetensors" if max_bytes else None
    kept = read_rows(cache) if cache else {}
    rows, errors = {one: kept[one] for one in stamps if one in kept}, dict[str, str]()
    missing = [one for one in stamps if one not in rows]
    try:
        for one, row in _compute(model, folder, missing):
            if isinstance(row, ImageError):
                errors[str(folder / one[0])] = str(row)
            else:
                rows[one] = row
    finally:
        if cache and missing and rows:
            keep_rows(cache, rows, max_bytes)
    done = [one for one in stamps if one in rows]
    empty = (0, len(model.class_names)), (0, model.classifier.embedding_size), (0, 1)
    arrays = [
        np.stack([rows[one][index] for one in done]) if done else np.empty(shape)
        for index, shape in enumerate(empty, start=1)
    ]
    return Embedded(
        paths=tuple(str(folder / one[0]) for one in done),
        hashes=tuple(rows[one][0] for one in done),
        errors=errors,
        **dict(zip(ARRAYS, arrays, strict=True)),
    )


def stamp(folder: Path, path: Path) -> Stamp:
    """What tells that a file is still the same."""
    name = str(path.relative_to(folder))
    try:
        status = os.stat(path)
    except OSError:  # reading it gives the reason
        return name, -1, -1
    return name, status.st_size, status.st_mtime_ns


def _compute(model: LoadedModel, folder: Path, stamps: Sequence[Stamp]) -> Iterator[tuple[Stamp, Row | ImageError]]:
    """The row of each file, or its error, in order, with a progress bar."""

    def row(one: Stamp) -> Row | ImageError:
        try:
            image = read_image(folder / one[0])
        except ImageError as error:
            return error
        logits, embeddings = model.classifier.logits_and_embeddings([image])
        probabilities = softmax(logits, model.manifest.temperature).astype(np.float32)  # as they are kept
        return pixel_hash(image), probabilities[0], embeddings[0], thumbnails([image])[0]

    def rows(task: Sequence[Stamp]) -> list[tuple[Stamp, Row | ImageError]]:
        return [(one, row(one)) for one in task]

    tasks = [stamps[start : start + IMAGES_PER_TASK] for start in range(0, len(stamps), IMAGES_PER_TASK)]
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        bar(None, "Classifying", "images", total=len(stamps)) as progress,
    ):
        for done in bounded_map(pool, rows, tasks, 2 * available_cores()):
            progress.update(len(done))
            yield from done


def read_rows(path: Path) -> dict[Stamp, Row]:
    """The rows in a file of the cache; none, and no file any more, unless it is exactly as written."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return {}
    with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError, TypeError):
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = [file.get_tensor(name) for name in ARRAYS]
        if _checksum(metadata["files"], arrays) == metadata["sha256"]:
            files = [((name, size, time), digest) for name, size, time, digest in json.loads(metadata["files"])]
            with contextlib.suppress(OSError):  # a cache that may only be read
                os.utime(path)
            return {one: (digest, *values) for (one, digest), *values in zip(files, *arrays, strict=True)}
    with contextlib.suppress(OSError):
        path.unlink()
    return {}


def keep_rows(path: Path, rows: Mapping[Stamp, Row], max_bytes: int) -> None:
    """Write rows to a file of the cache; killed at any moment, it is the old or the new one. Says if it cannot."""
    from safetensors.numpy import save_file

    arrays = [np.stack([row[index] for row in rows.values()]).astype(np.float32) for index in (1, 2, 3)]
    files = json.dumps([[*one, row[0]] for one, row in rows.items()])
    metadata, temporary = {"files": files, "sha256": _checksum(files, arrays)}, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=PARTIAL_PREFIX, dir=path.parent)
        os.close(descriptor)
        save_file(dict(zip(ARRAYS, arrays, strict=True)), temporary, metadata=metadata)
        os.replace(temporary, path)
        prune_features(path.parent, max_bytes)
    except Exception as error:  # safetensors has an error of its own for a full disk
        notify(
            f"The embeddings are not kept in {path.parent} ({reason_of(error)}): free disk space, set VITCIFAR_CACHE "
            "to another folder, or type --keep-features 0."
        )
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _checksum(files: str, arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256(files.encode())
    for values in arrays:
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
