"""A lock on the folder of a run. The process that writes the run holds it; the system releases it however that ends."""

import contextlib
import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vitcifar.errors import TrackingError

FILE = "lock"
_held: set[Path] = set()  # by this process: the system lets a process take its own lock again


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a run's folder, which is made if it is new. Raises TrackingError when a process holds it.

    A lock of POSIX: loader workers do not inherit it, as they would that of `flock`, and so cannot outlive the run with
    it. On Windows, and on a file system without locks, nothing is locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / FILE).resolve()
    with contextlib.ExitStack() as stack:
        file = None if path in _held else stack.enter_context(path.open("a+", encoding="utf-8"))
        if file is None or not _acquire(file):
            check_free(folder)
            raise TrackingError(f"Run {folder.name} has just been started by another process: try again.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        _held.add(path)
        stack.callback(_held.discard, path)
        yield


def holder(folder: Path) -> str | None:
    """The process that holds the lock on a run's folder, in words; None when nobody does."""
    path = (folder / FILE).resolve()
    if path in _held:  # closing a second handle would release it
        return f"process {os.getpid()}, this one"
    try:
        with path.open("r+", encoding="utf-8", errors="replace") as file:
            if _acquire(file):
                return None
            written = file.read(200)
    except OSError:  # no such file, or one that this user may not write
        return None
    return written if written and written.isprintable() else "another process"


def check_free(folder: Path) -> None:
    """Raise TrackingError when a process holds the lock on a run's folder."""
    if process := holder(folder):
        raise TrackingError(
            f"Run {folder.name} is still training, in {process}: wait until it ends, or end that process."
        )


def _acquire(file: IO[str]) -> bool:
    """Whether the lock could be taken; the file keeps it until it is closed."""
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
