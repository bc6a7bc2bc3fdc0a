"""From the artifact store into a local cache, every byte verified; and from the cache into a PyTorch network."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.cache import PARTIAL_PREFIX, STALE_SECONDS, Cached, cache_dir
from vitcifar.config import TrainConfig
from vitcifar.errors import ReleaseError, reason_of
from vitcifar.release.artifacts import download_file, environment_variable
from vitcifar.release.manifest import (
    MANIFEST_FILE,
    PT2_FILE,
    Manifest,
    check_digest,
    read_manifest,
    sha256_of,
    verify,
)
from vitcifar.release.validation import is_digest

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from vitcifar.model.network import Classifier

CONSTANTS = ("mean", "std", "layer_norm_eps")  # of the network, in the manifest's preprocessing
NOT_SERVED = frozenset({PT2_FILE})
STORE = "the store"  # the origin that messages name for downloaded files
KEEP = 5  # releases, if VITCIFAR_CACHE_KEEP does not say another number


def num_kept() -> int:
    """How many releases stay in the cache: VITCIFAR_CACHE_KEEP, or `KEEP`. Raises ReleaseError."""
    given = os.environ.get("VITCIFAR_CACHE_KEEP", str(KEEP))
    if not given.isdecimal() or int(given) < 1:
        raise ReleaseError(f"VITCIFAR_CACHE_KEEP is {given!r}: set it to a whole number of at least 1.")
    return int(given)


def fetch(location: str, digest: str, *, pytorch: bool = False) -> Manifest:
    """The release with this digest: from the cache if it is complete there, else from its location in the store.

    The pt2 file is downloaded only with `pytorch`: serving does not need it. Releases that were not used for long
    leave the cache (`prune_cache`). Raises ReleaseError, and TrackingError when the store is unavailable.
    """
    keep = num_kept()
    releases = cache_dir() / "releases"
    folder = releases / digest
    with _writing(folder):
        _remove_stale(releases)
        release = _cached(folder, digest) or _download(location, digest, folder)
        if pytorch and not (folder / PT2_FILE).exists():
            with _partial(releases) as partial:
                download_file(get_artifact_repository(location), PT2_FILE, partial)
                check_digest(partial, PT2_FILE, release.files[PT2_FILE], STORE)
                (folder / PT2_FILE).parent.mkdir(exist_ok=True)
                os.replace(partial / PT2_FILE, folder / PT2_FILE)
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(folder)
            prune_cache(keep)
    return release


def cached_releases() -> list[Cached]:
    """The releases in the cache, the last used one first."""
    found = []
    for folder in (cache_dir() / "releases").glob("[0-9a-f]" * 64):
        with contextlib.suppress(FileNotFoundError):  # another process deletes it
            files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
            release = Cached(path=folder, num_bytes=sum(files), used=folder.stat().st_mtime)
            try:
                lock(folder, shared=False).close()
            except FileNotFoundError:
                raise
            except OSError:  # others have it open, or this file system has no locks
                release = dataclasses.replace(release, open=True)
            found.append(release)
    return sorted(found, key=lambda release: release.used, reverse=True)


def prune_cache(keep: int) -> list[Cached]:
    """Delete all but the `keep` releases that were used last, and those that a process has open; returns those."""
    deleted = []
    for release in cached_releases()[keep:]:
        with contextlib.suppress(OSError), lock(release.path, shared=False), _partial(release.path.parent) as trash:
            os.replace(release.path, trash / release.path.name)
            deleted.append(release)
    return deleted


def lock(folder: Path, *, shared: bool) -> BinaryIO:
    """The release.json of a cached release, locked until it is closed: `shared` by those who have the release open.

    Raises BlockingIOError when others have locked it. On Windows nothing is locked.
    """
    file = (folder / MANIFEST_FILE).open("rb")
    try:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file


def cached_manifest(digest: str) -> Manifest | None:
    """The release.json with this digest in the cache, with or without the other files of the release."""
    for kind in ("releases", "manifests") if is_digest(digest) else ():
        path = cache_dir() / kind / digest / MANIFEST_FILE
        if path.is_file() and sha256_of(path) == digest:
            return read_manifest(path)
    return None


def fetch_manifest(location: str, digest: str) -> Manifest:
    """The release.json with this digest from its location in the store, now in the cache. Raises as `fetch`."""
    folder = cache_dir() / "manifests" / digest
    with _writing(folder), _partial(folder.parent) as partial:
        download_file(get_artifact_repository(location), MANIFEST_FILE, partial)
        check_digest(partial, MANIFEST_FILE, digest, STORE)
        folder.mkdir(exist_ok=True)
        os.replace(partial / MANIFEST_FILE, folder / MANIFEST_FILE)
    return read_manifest(folder / MANIFEST_FILE)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make the folder of a folder of the cache; a full or read-only disk is a ReleaseError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ReleaseError(
            f"The release cannot be written to {folder.parent} ({error.strerror or error}): free disk space, "
            "or set VITCIFAR_CACHE to another folder."
        ) from error


def _cached(folder: Path, digest: str) -> Manifest | None:
    """The release in the cache; an incomplete or changed one is deleted."""
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
        check_digest(partial, MANIFEST_FILE, digest, STORE)
        for name in read_manifest(partial / MANIFEST_FILE).files.keys() - NOT_SERVED:
            download_file(repository, name, partial)
        release = verify(partial, digest=digest, optional=NOT_SERVED, where=STORE)
        try:
            os.rename(partial, folder)
        except OSError:  # another process has finished the same download
            return verify(folder, digest=digest, optional=NOT_SERVED)
    return dataclasses.replace(release, folder=folder)


@contextlib.contextmanager
def _partial(releases: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=releases, prefix=PARTIAL_PREFIX, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _remove_stale(releases: Path) -> None:
    """Remove partial downloads of killed processes after a day."""
    for partial in releases.glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def release_constants(release: Manifest) -> dict[str, Any]:
    """What the network of a release computes with besides its weights (`Classifier.constants`), if it is recorded."""
    return {name: release.preprocessing[name] for name in CONSTANTS if name in release.preprocessing}


def release_weights(release: Manifest) -> "dict[str, Tensor]":
    """The state dict of the network of a verified release. Raises ReleaseError."""
    state = load_module(release).state_dict()
    return {name.removeprefix("network."): tensor for name, tensor in state.items()}  # as in model.network.Released


def load_module(release: Manifest) -> "Module":
    """The exported module of a verified release, loaded from its pt2 with pickle disabled. Raises ReleaseError."""
    import mlflow.pytorch
    from mlflow.exceptions import MlflowException

    assert release.folder is not None
    try:
        with environment_variable("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false"):
            module: Module = mlflow.pytorch.load_model(str(release.folder))
            return module
    except MlflowException as error:
        raise ReleaseError(f"The weights in {release.folder} are not plain tensors: {error}") from error
    except Exception as error:  # torch's loader may raise anything, for one for a file of a newer torch
        raise ReleaseError(
            f"The PyTorch model in {release.folder} cannot be loaded here ({reason_of(error)}): install the torch "
            f"{release.environment.get('packages', {}).get('torch', 'that wrote it')}, or use its ONNX model."
        ) from error


def open_network(release: Manifest) -> "Classifier":
    """Rebuild the network of a release that was pulled with its pt2, in evaluation mode.

    Raises ReleaseError if the weights do not fit the architecture in this version of vitcifar.
    """
    from vitcifar.model.network import build_network

    config = TrainConfig(
        arch=release.config["arch"],
        image_size=release.image_size,
        token_merging=release.config.get("token_merging", 0),
        merging_schedule=release.config.get("merging_schedule", "constant"),
        weights="none",
        train_layers="head",
    )
    network = build_network(config, release.class_names)
    network.set_constants(**release_constants(release))
    weights = release_weights(release)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ReleaseError(
            f"The weights of {release.model_name} {release.version} do not fit {config.arch} of this vitcifar: "
            "use its ONNX model instead."
        ) from error
    return network.eval()
