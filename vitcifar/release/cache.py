"""From the registry's store into a cache of ours: every byte verified, whole or not at all, kept for the next time."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.errors import ReleaseError
from vitcifar.release.artifacts import download_file
from vitcifar.release.manifest import MANIFEST_FILE, PT2_FILE, Manifest, read_manifest, sha256_of, verify

NOT_SERVED = frozenset({PT2_FILE})
PARTIAL_PREFIX = ".partial-"
STALE_SECONDS = 24 * 3600


def cache_dir() -> Path:
    """Where pulled releases are kept: VITCIFAR_CACHE, or ~/.cache/vitcifar."""
    given = os.environ.get("VITCIFAR_CACHE")
    return Path(given).absolute() if given else Path.home() / ".cache" / "vitcifar"


def fetch(location: str, digest: str, *, pytorch: bool = False) -> Manifest:
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
                download_file(get_artifact_repository(location), PT2_FILE, partial)
                _check(partial, PT2_FILE, release)
                (folder / PT2_FILE).parent.mkdir(exist_ok=True)
                os.replace(partial / PT2_FILE, folder / PT2_FILE)
    except OSError as error:
        raise ReleaseError(
            f"The release cannot be kept in {releases} ({error.strerror or error}): make room, "
            "or name another folder with VITCIFAR_CACHE."
        ) from error
    return release


def _kept(folder: Path, digest: str) -> Manifest | None:
    """The release as it lies in the cache; one that is broken is thrown away."""
    if not folder.exists():
        return None
    try:
        return verify(folder, digest=digest, optional=NOT_SERVED)
    except ReleaseError:
        with _partial(folder.parent) as trash:
            os.replace(folder, trash / folder.name)
        return None


def _download(location: str, digest: str, folder: Path) -> Manifest:
    with _partial(folder.parent) as partial:
        repository = get_artifact_repository(location)
        download_file(repository, MANIFEST_FILE, partial)
        if sha256_of(partial / MANIFEST_FILE) != digest:
            raise ReleaseError(_changed(MANIFEST_FILE))
        release = read_manifest(partial / MANIFEST_FILE)
        for name in release.files.keys() - NOT_SERVED:
            download_file(repository, name, partial)
            _check(partial, name, release)
        verify(partial, digest=digest, optional=NOT_SERVED)
        try:
            os.rename(partial, folder)
        except OSError:  # another process was quicker: its folder is as good
            return verify(folder, digest=digest, optional=NOT_SERVED)
    return dataclasses.replace(release, folder=folder)


def _check(folder: Path, name: str, release: Manifest) -> None:
    if sha256_of(folder / name) != release.files[name]:
        raise ReleaseError(_changed(name))


def _changed(name: str) -> str:
    return (
        f"{name} in the store was changed after it was registered: its sha256 is not the recorded one. "
        "Run `vitcifar doctor`, and serve another version until then."
    )


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
