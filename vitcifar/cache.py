"""The folder of what can be downloaded or computed again: releases (release/cache.py), features of frozen layers
(training/feature_cache.py). Here is where it lies, and what bounds its features."""

import contextlib
import dataclasses
import os
import time
from pathlib import Path

from vitcifar.errors import ConfigError

PARTIAL_PREFIX = ".partial-"  # of what is being written; a killed process leaves it behind
STALE_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cached:
    """A release or a file of features in the cache: its size on disk, when a command last used it, and whether a
    process has it open."""

    path: Path
    num_bytes: int
    used: float  # seconds since 1970
    open: bool = False


def cache_dir() -> Path:
    """The folder of the cache: VITCIFAR_CACHE, or ~/.cache/vitcifar. Raises ConfigError without a home folder."""
    given = os.environ.get("VITCIFAR_CACHE")
    try:
        return Path(given).absolute() if given else Path.home() / ".cache" / "vitcifar"
    except RuntimeError:  # neither HOME nor an entry of the user
        raise ConfigError("There is no home folder for the cache: set VITCIFAR_CACHE to a folder.") from None


def features_dir() -> Path:
    return cache_dir() / "features"


def cached_features(folder: Path) -> list[Cached]:
    """The files of features in a folder, the last used one first."""
    found = []
    for path in folder.glob("[0-9a-f]" * 64 + ".safetensors"):
        with contextlib.suppress(FileNotFoundError):  # another process deletes it
            status = path.stat()
            found.append(Cached(path=path, num_bytes=status.st_size, used=status.st_mtime))
    return sorted(found, key=lambda file: file.used, reverse=True)


def prune_features(folder: Path, max_bytes: int) -> list[Cached]:
    """Delete the files of features that were not used for longest, so that the others take at most `max_bytes`, and
    what killed processes left behind a day ago; returns the files of features."""
    num_bytes, deleted = 0, []
    for file in cached_features(folder):
        num_bytes += file.num_bytes
        if num_bytes > max_bytes:
            with contextlib.suppress(OSError):  # on Windows, a file that a process has open
                file.path.unlink()
                deleted.append(file)
    for partial in folder.glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()
    return deleted
