"""A registered version in memory, verified before its ONNX file is opened, and its predictions for many files."""

import contextlib
import dataclasses
import os
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import yaml
from PIL import Image

from vitcifar.data.image import convert_image, read_image
from vitcifar.errors import ImageError, RegistryError, ReleaseError, TrackingError
from vitcifar.inference.image_statistics import ImageStatistics
from vitcifar.inference.session import MAX_BATCH, OnnxClassifier, Prediction
from vitcifar.registry.registry import Registry
from vitcifar.registry.signing import check_signature
from vitcifar.release.cache import lock
from vitcifar.release.manifest import MANIFEST_FILE, Manifest, sha256_of, verify
from vitcifar.release.served import open_served
from vitcifar.release.signature import REQUIRED

ImageSource = Path | str | bytes | np.ndarray | Image.Image
Source = TypeVar("Source", bound=ImageSource)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A verified release and its ONNX session; `version` is None for a folder that is not from a registry."""

    model_name: str
    version: int | None
    manifest: Manifest
    classifier: OnnxClassifier
    digest: str = ""  # sha256 of its release.json

    @property
    def name(self) -> str:
        """The model and its version, for people: `vitcifar version 3`."""
        return f"{self.model_name} version {self.version if self.version is not None else self.manifest.release_id}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names, in the order of the logits."""
        return self.manifest.class_names

    @overload
    def predict(self, source: ImageSource) -> Prediction: ...

    @overload
    def predict(self, source: list[Source]) -> list[Prediction]: ...

    def predict(self, source: ImageSource | list[Source]) -> Prediction | list[Prediction]:
        """Classify one image, or a list of images in order.

        An image is a path (`Path` or `str`), the bytes of an image file, an array uint8 (H, W, 3) or a PIL image, of
        any size. A single path, or the bytes of one file, gives a prediction with `timing` in milliseconds.
        Raises ImageError for an image that cannot be decoded, or an array of another type or shape.
        """
        if isinstance(source, str | Path | bytes):
            return self.classifier.predict(Path(source) if isinstance(source, str) else source)
        if not isinstance(source, list):
            return self.classifier.predict_images([read_source(source)])[0]
        predictions: list[Prediction] = []
        for start in range(0, len(source), MAX_BATCH):  # only one batch of decoded images is in memory at a time
            batch = enumerate(source[start : start + MAX_BATCH], start + 1)
            predictions += self.classifier.predict_images([read_source(item, f"Image {n}") for n, item in batch])
        return predictions


def read_source(source: ImageSource, name: str = "The image") -> np.ndarray:
    """An image of any accepted type -> uint8 (H, W, 3). Raises ImageError; `name` names an image without a path."""
    match source:
        case str() | Path():
            return read_image(Path(source))
        case bytes():
            return read_image(source, name)
        case Image.Image():
            return convert_image(source.copy(), name)
        case np.ndarray(dtype=np.uint8, ndim=3, shape=(_, _, 3)) if source.size:
            return source
        case np.ndarray():
            raise ImageError(f"{name} is {source.dtype} {source.shape}: expected uint8 (height, width, 3).")
    raise ImageError(f"{name} is {type(source).__name__}: expected a path, bytes, an array or a PIL image.")


def open_version(registry: Registry, spec: str | int, *, num_threads: int = 0, concurrent: bool = False) -> LoadedModel:
    """Pull a version (a number, an alias or `latest`), verify it, open it and run it once.

    `num_threads` 0 uses every core of this process; `concurrent` is for many predictions at a time. Raises
    RegistryError when there is no such version, ReleaseError when its release is incomplete, changed, or lacks a
    signature that is required.
    """
    manifest = registry.pull(spec, signed=True)
    model = _open(manifest, registry.model_name, manifest.version, num_threads, concurrent)
    with contextlib.suppress(OSError):  # a file system without locks
        # Its folder stays in the cache as long as the model is in memory.
        weakref.finalize(model, lock(manifest.path(MANIFEST_FILE).parent, shared=True).close)
    return model


def open_folder(folder: Path) -> LoadedModel:
    """Verify and open a release that MLflow downloaded into a folder, as the version that MLflow recorded there.

    Warns when the registry does not have that version. Raises ReleaseError when the release is incomplete or changed,
    or is not the one that the registry has for this version.
    """
    record = folder / "registered_model_meta"
    if not record.is_file():
        _refuse_unsigned(folder)
        manifest = verify(folder)
        return _open(manifest, manifest.model_name, None)
    try:
        meta = yaml.safe_load(record.read_text(encoding="utf-8"))
        registry, number = Registry(str(meta["model_name"])), int(meta["model_version"])
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, KeyError):
        raise ReleaseError(f"{record} cannot be read: download the version again.") from None
    try:
        version = registry.show(number)
    except (RegistryError, TrackingError) as error:
        _refuse_unsigned(folder)
        name = f"{registry.model_name} {number}"
        warnings.warn(
            f"{name} was verified against its own release.json only, not against the registry: {error}", stacklevel=2
        )
        return _open(verify(folder), registry.model_name, number)
    check_signature(registry, version)
    return _open(verify(folder, digest=registry.digest_of(version)), registry.model_name, number)


def _refuse_unsigned(folder: Path) -> None:
    if os.environ.get(REQUIRED, "none") != "none":
        raise ReleaseError(
            f"{REQUIRED} requires a signature, and only the registry has that of {folder}: load the version by "
            "models:/NAME/VERSION where its registry can be reached."
        )


def _open(
    manifest: Manifest, model_name: str, version: int | None, num_threads: int = 0, concurrent: bool = False
) -> LoadedModel:
    recorded = manifest.checks.get("image_statistics")  # a release of an older vitcifar has none
    statistics = ImageStatistics.from_dict(recorded) if recorded else None
    options: dict[str, Any] = {"num_threads": num_threads, "concurrent": concurrent, "statistics": statistics}
    classifier = open_served(manifest, **options)
    if classifier.class_names != manifest.class_names or classifier.release_id != manifest.release_id:
        raise ReleaseError(
            f"{manifest.onnx_path} belongs to another release than its release.json: expected {manifest.release_id}, "
            f"got {classifier.release_id}. Pull the version again."
        )
    classifier.warm()
    digest = sha256_of(manifest.path(MANIFEST_FILE))
    return LoadedModel(model_name=model_name, version=version, manifest=manifest, classifier=classifier, digest=digest)


def predict_files(model: LoadedModel, paths: Iterable[Path | str]) -> Iterator[dict[str, Any]]:
    """Classify files in order; each row is yielded as soon as it is ready.

    A row has `path` and the keys of `Prediction.to_dict`, or `path` and `error`, one sentence that names the file.
    """
    for path in paths:
        name = str(path) if str(path).isprintable() else repr(str(path))
        try:
            prediction = model.classifier.predict(Path(path), name)
        except ImageError as error:
            yield {"path": name, "error": str(error)}
        else:
            yield {"path": name, **prediction.to_dict(model.model_name, model.version)}


class PredictionTable:
    """Rows as lines of text under one heading; the widths are known in advance, so lines can be streamed."""

    def __init__(self, model: LoadedModel, paths: Sequence[Path | str]) -> None:
        self.path_width = max(len(str(path)) for path in ("file", *paths))
        self.label_width = max(len(name) for name in ("label", *model.class_names))

    def heading(self) -> str:
        return f"{'file':<{self.path_width}}  {'label':<{self.label_width}}  probability  version  milliseconds"

    def line(self, row: dict[str, Any]) -> str:
        """The line of one row, or its error."""
        if "error" in row:
            return str(row["error"])
        version = "-" if row["version"] is None else row["version"]
        return (
            f"{row['path']:<{self.path_width}}  {row['label']:<{self.label_width}}  "
            f"{row['probabilities'][row['label']]:>11.3f}  {version:>7}  {row['timing']['total_ms']:>12.1f}"
        )
