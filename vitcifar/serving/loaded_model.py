"""A version that can answer: its release verified first, its ONNX file opened after, and the two held to agree."""

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vitcifar.errors import RegistryError, ReleaseError, TrackingError
from vitcifar.inference.session import OnnxClassifier
from vitcifar.release.manifest import Manifest, verify

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A verified release with its open session; `version` is None for a folder that came from no registry."""

    model_name: str
    version: int | None
    release: Manifest
    classifier: OnnxClassifier

    @property
    def name(self) -> str:
        """Who answers, in words: `vitcifar version 3`."""
        return f"{self.model_name} version {self.version if self.version is not None else self.release.release_id}"


def open_version(registry: "Registry", spec: str | int, *, num_threads: int = 0) -> LoadedModel:
    """Pull a version (a number, an alias or `latest`), verify it, open it and run it once.

    Raises RegistryError when there is no such version, ReleaseError when it is not a whole release.
    """
    release = registry.pull(spec)
    return _open(release, registry.model_name, release.version, num_threads)


def open_folder(folder: Path, *, num_threads: int = 0) -> LoadedModel:
    """Verify and open a release that MLflow brought into a folder; the version is what MLflow noted beside it.

    Raises ReleaseError when it is not a whole release, or not the one that the registry knows by that version.
    """
    noted = folder / "registered_model_meta"
    if not noted.is_file():
        release = verify(folder)
        return _open(release, release.model_name, None, num_threads)
    meta = yaml.safe_load(noted.read_text(encoding="utf-8"))
    name, version = str(meta["model_name"]), int(meta["model_version"])
    return _open(verify(folder, digest=_registered_digest(name, version)), name, version, num_threads)


def _registered_digest(model_name: str, number: int) -> str | None:
    """The digest that the registry has of a version; None, with a warning, when there is no registry to ask."""
    from vitcifar.registry.registry import Registry

    registry = Registry(model_name)
    try:
        version = registry.show(number)
    except (RegistryError, TrackingError) as error:
        warnings.warn(
            f"The registry could not say what {model_name} {number} is ({error}) Its files were held against its own "
            "list alone.",
            stacklevel=2,
        )
        return None
    return registry.digest_of(version)


def _open(release: Manifest, model_name: str, version: int | None, num_threads: int) -> LoadedModel:
    classifier = OnnxClassifier(release.onnx_path, num_threads=num_threads)
    if classifier.class_names != release.class_names or classifier.release_id != release.release_id:
        raise ReleaseError(
            f"{release.onnx_path} is another release than its release.json says: expected {release.release_id}, "
            f"got {classifier.release_id}. Pull the version again."
        )
    classifier.warm()
    return LoadedModel(model_name=model_name, version=version, release=release, classifier=classifier)
