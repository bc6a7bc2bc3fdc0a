"""The files of a release in MLflow's artifact store, and how they differ from those that were registered.

An unavailable store is an error (TrackingError), never missing files: an outage is never "repaired".
"""

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from vitcifar.errors import ReleaseError, TrackingError, reason_of
from vitcifar.release.manifest import MANIFEST_FILE, WRITTEN_LATER, Manifest, read_manifest, sha256_of
from vitcifar.stores import ERRORS, explain
from vitcifar.uris import FULL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mismatch:
    """How a stored release differs from the registered one; false if it does not."""

    missing_or_changed: tuple[str, ...]
    unexpected: tuple[str, ...]  # files that release.json does not list
    empty: bool  # no file at all: deleted, or the folder of the store is not mounted

    def __bool__(self) -> bool:
        return bool(self.missing_or_changed or self.unexpected)

    def __str__(self) -> str:
        problems = {"missing or changed": self.missing_or_changed, "unexpected": self.unexpected}
        return "; ".join(f"{problem} in the store: {', '.join(names)}" for problem, names in problems.items() if names)


def find_mismatch(location: str, digest: str, known: Manifest | None = None) -> Mismatch:
    """Download every file at a location of the store, one at a time, and compare its hash with release.json.

    If release.json itself was changed, the files that `known` (the release from the cache) lists are compared.
    Raises TrackingError when the store is unavailable.
    """
    repository = get_artifact_repository(location)
    present = list_files(repository)

    def differs(name: str, sha256: str, folder: Path) -> bool:
        if name not in present:
            return True
        download_file(repository, name, folder)
        return sha256_of(folder / name) != sha256

    with artifact_errors(), tempfile.TemporaryDirectory(prefix="pulled-") as temporary:
        folder = Path(temporary)
        different, listed = [], known.files if known else None
        if differs(MANIFEST_FILE, digest, folder):
            different.append(MANIFEST_FILE)
        else:
            listed = read_manifest(folder / MANIFEST_FILE).files
        for name, sha256 in sorted((listed or {}).items()):
            if differs(name, sha256, folder):
                different.append(name)
            (folder / name).unlink(missing_ok=True)
    unexpected = set() if listed is None else present - listed.keys() - {MANIFEST_FILE} - WRITTEN_LATER
    return Mismatch(missing_or_changed=tuple(different), unexpected=tuple(sorted(unexpected)), empty=not present)


def root_of(location: str) -> str:
    """The folder of all models for a store on this machine; for other stores the location itself."""
    return str(Path(local_file_uri_to_path(location)).parents[1]) if is_local_uri(location) else location  # type: ignore[no-untyped-call]


def has_root(location: str, otherwise: bool = True) -> bool:
    """Whether the folder of all models exists, for a store on this machine; `otherwise` for other stores."""
    return Path(root_of(location)).is_dir() if is_local_uri(location) else otherwise  # type: ignore[no-untyped-call]


def list_files(repository: ArtifactRepository) -> set[str]:
    """The names of all files of an artifact repository. Raises TrackingError when the store is unavailable."""
    names: set[str] = set()
    folders: list[str | None] = [None]
    with artifact_errors():
        while folders:
            for entry in repository.list_artifacts(folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    names.add(entry.path)
    return names


def download_file(repository: ArtifactRepository, name: str, folder: Path) -> None:
    """Copy one file of the store into a folder.

    Raises ReleaseError when the store does not have the file, TrackingError when it has it but cannot deliver it, and
    OSError when the disk of the folder is full.
    """
    try:
        repository.download_artifacts(name, dst_path=str(folder))  # type: ignore[no-untyped-call]
    except (MlflowException, requests.RequestException, FileNotFoundError) as error:
        if (found := re.search(r"\[Errno (\d+)\]", str(error))) and int(found[1]) in FULL:
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) from error
        if name in list_files(repository):
            raise _unavailable(error) from error
        raise ReleaseError(f"The store does not hold {name} of this release: run `vitcifar doctor`.") from error


@contextlib.contextmanager
def artifact_errors() -> Iterator[None]:
    """Raise TrackingError for the errors of an artifact store that is unavailable."""
    try:
        yield
    except (*ERRORS, OSError) as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> TrackingError:
    if isinstance(error, ERRORS):
        return explain(mlflow.get_tracking_uri(), error, "The artifact store of")
    if isinstance(error, OSError) and error.errno in FULL:
        return TrackingError(
            f"The files of a release cannot be written to {error.filename} ({error.strerror}): free disk space, or set "
            "TMPDIR to another folder."
        )
    return TrackingError(f"The artifact store is unavailable ({reason_of(error)}): check its folder, then try again.")


@contextlib.contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable and restore its former value afterwards."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
