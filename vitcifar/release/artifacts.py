"""What MLflow's artifact store holds of a release, and in what that differs from what was registered.

A store that does not answer is told apart from one that lost files: nobody repairs an outage.
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import requests
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from vitcifar.errors import ReleaseError, TrackingError
from vitcifar.release.manifest import MANIFEST_FILE, WRITTEN_LATER, Manifest, read_manifest, sha256_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mismatch:
    """How a stored release differs from the one that was registered; false when it does not."""

    missing_or_changed: tuple[str, ...]  # files that are missing or changed
    unexpected: tuple[str, ...]  # files that it does not list
    empty: bool  # there is nothing at all: it was lost, or the place where the store keeps its files is away

    def __bool__(self) -> bool:
        return bool(self.missing_or_changed or self.unexpected)

    def __str__(self) -> str:
        parts = []
        if self.missing_or_changed:
            parts.append(f"missing or changed in the store: {', '.join(self.missing_or_changed)}")
        if self.unexpected:
            parts.append(f"in the store and not of the release: {', '.join(self.unexpected)}")
        return "; ".join(parts)


def find_mismatch(location: str, digest: str, known: Manifest | None = None) -> Mismatch:
    """Hold every file at a location of the store against its hash, one at a time.

    A release.json that was changed hides what it lists: `known` is the release as it was, from the cache.
    Raises TrackingError when the store does not answer, so that nobody takes an outage for a loss.
    """
    repository = get_artifact_repository(location)
    present = list_files(repository)

    def is_lost(name: str, sha256: str, folder: Path) -> bool:
        if name not in present:
            return True
        download_file(repository, name, folder)
        return sha256_of(folder / name) != sha256

    with answering(), tempfile.TemporaryDirectory(prefix="pulled-") as place:
        folder, lost = Path(place), []
        if is_lost(MANIFEST_FILE, digest, folder):
            lost.append(MANIFEST_FILE)
            listed = dict(known.files) if known else None
        else:
            listed = read_manifest(folder / MANIFEST_FILE).files
        for name, sha256 in sorted((listed or {}).items()):
            if is_lost(name, sha256, folder):
                lost.append(name)
            (folder / name).unlink(missing_ok=True)
    strange = set() if listed is None else present - listed.keys() - {MANIFEST_FILE} - WRITTEN_LATER
    return Mismatch(missing_or_changed=tuple(lost), unexpected=tuple(sorted(strange)), empty=not present)


def root_of(location: str) -> str:
    """Where a store keeps its models: for a store on this machine the folder of all models."""
    return str(Path(local_file_uri_to_path(location)).parent.parent) if is_local_uri(location) else location


def has_root(location: str, otherwise: bool = True) -> bool:
    """Whether the folder of all models is there, for a store on this machine; for others what one knows otherwise."""
    return Path(root_of(location)).is_dir() if is_local_uri(location) else otherwise


def list_files(repository: ArtifactRepository) -> set[str]:
    """The names of all files at a place of the store. Raises TrackingError when it does not answer."""
    names: set[str] = set()
    folders: list[str | None] = [None]
    with answering():
        while folders:
            for entry in repository.list_artifacts(folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    names.add(entry.path)
    return names


def download_file(repository: ArtifactRepository, name: str, folder: Path) -> None:
    """Copy one file of the store into a folder.

    Raises ReleaseError when the store does not have it, TrackingError when it does not give what it has.
    """
    try:
        with variable("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"):  # one bar for each file says nothing
            repository.download_artifacts(name, dst_path=str(folder))
    except (MlflowException, requests.RequestException, FileNotFoundError) as error:
        if name in list_files(repository):
            raise TrackingError(_away(error)) from error
        raise ReleaseError(f"The store does not hold {name} of this release: run `vitcifar doctor`.") from error


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turn what is raised when a store of files does not answer into one sentence."""
    try:
        yield
    except (MlflowException, requests.RequestException, OSError) as error:
        raise TrackingError(_away(error)) from error


def _away(error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return f"The store does not give its files ({reason}): see that it runs and has its folder, and try again."


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set it, and afterwards leave it as it was."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
