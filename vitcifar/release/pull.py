"""From the registry's store into a cache of ours: every byte verified, whole or not at all, kept for the next time."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.errors import ReleaseError
from vitcifar.release.bundle import PT2_FILE, RELEASE_FILE, Release, read_release, sha256_of, verify

NOT_SERVED = frozenset({PT2_FILE})
PARTIAL_PREFIX = ".partial-"
STALE_SECONDS = 24 * 3600


def cache_dir() -> Path:
    """Where pulled releases are kept: VITCIFAR_CACHE, or ~/.cache/vitcifar."""
    given = os.environ.get("VITCIFAR_CACHE")
    return Path(given).absolute() if given else Path.home() / ".cache" / "vitcifar"


def fetch(location: str, digest: str, *, pytorch: bool = False) -> Release:
    """The release with this digest, from the cache when it lies there whole, else from its location in the store.

    The pt2 is only brought with `pytorch`: what serves neither needs nor has it. Raises ReleaseError.
    """
    releases = cache_dir() / "releases"
    folder = releases / digest
    try:
        releases.mkdir(parents=True, exist_ok=True)
        _sweep(releases)
        release = _kept(folder, digest) or _download(location, digest, folder)
        if pytorch and not (folder / PT2_FILE).exists():
            with _partial(releases) as partial:
                _bring(get_artifact_repository(location), PT2_FILE, partial)
                _check(partial, PT2_FILE, release)
                (folder / PT2_FILE).parent.mkdir(exist_ok=True)
                os.replace(partial / PT2_FILE, folder / PT2_FILE)
    except OSError as error:
        raise ReleaseError(
            f"The release cannot be kept in {releases} ({error.strerror or error}): make room, "
            "or name another folder with VITCIFAR_CACHE."
        ) from error
    return release


def _kept(folder: Path, digest: str) -> Release | None:
    """The release as it lies in the cache; one that is broken is thrown away."""
    if not folder.exists():
        return None
    try:
        return verify(folder, digest=digest, optional=NOT_SERVED)
    except ReleaseError:
        with _partial(folder.parent) as trash:
            os.replace(folder, trash / folder.name)
        return None


def _download(location: str, digest: str, folder: Path) -> Release:
    with _partial(folder.parent) as partial:
        repository = get_artifact_repository(location)
        _bring(repository, RELEASE_FILE, partial)
        if sha256_of(partial / RELEASE_FILE) != digest:
            raise ReleaseError(_changed(RELEASE_FILE))
        release = read_release(partial / RELEASE_FILE)
        for name in release.files.keys() - NOT_SERVED:
            _bring(repository, name, partial)
            _check(partial, name, release)
        verify(partial, digest=digest, optional=NOT_SERVED)
        try:
            os.rename(partial, folder)
        except OSError:  # another process was quicker: its folder is as good
            return verify(folder, digest=digest, optional=NOT_SERVED)
    return dataclasses.replace(release, folder=folder)


def damaged_files(location: str, digest: str, known: Release | None = None) -> list[str]:
    """The names of the files that the store no longer has as they were registered, one file at a time.

    A release.json that was changed hides what it lists: `known` is the release as it was, from the cache.
    """
    repository, damaged = get_artifact_repository(location), []
    with tempfile.TemporaryDirectory(prefix="pulled-") as folder:
        if _differs(repository, RELEASE_FILE, digest, Path(folder)):
            damaged.append(RELEASE_FILE)
            expected = dict(known.files) if known else {}
        else:
            expected = dict(read_release(Path(folder) / RELEASE_FILE).files)
        damaged += [name for name in sorted(expected) if _differs(repository, name, expected[name], Path(folder))]
    return damaged


def _differs(repository: ArtifactRepository, name: str, sha256: str, folder: Path) -> bool:
    try:
        _bring(repository, name, folder)
        differs = sha256_of(folder / name) != sha256
    except (ReleaseError, OSError):
        return True
    if name != RELEASE_FILE:
        (folder / name).unlink()
    return differs


def _bring(repository: ArtifactRepository, name: str, folder: Path) -> None:
    try:
        with environment("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"):  # one bar for each file says nothing
            repository.download_artifacts(name, dst_path=str(folder))
    except (MlflowException, requests.RequestException, FileNotFoundError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ReleaseError(
            f"The store does not give {name} of this release ({reason}): run `vitcifar doctor`."
        ) from error


def _check(folder: Path, name: str, release: Release) -> None:
    if sha256_of(folder / name) != release.files[name]:
        raise ReleaseError(_changed(name))


def _changed(name: str) -> str:
    return (
        f"{name} in the store was changed after it was registered: its sha256 is not the recorded one. "
        "Run `vitcifar doctor`, and serve another version until then."
    )


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A variable of the environment for a while: the only way to tell MLflow some things."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _partial(releases: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=releases, prefix=PARTIAL_PREFIX))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(releases: Path) -> None:
    """Remove what a killed process left of a download, a day later."""
    for partial in releases.glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)
