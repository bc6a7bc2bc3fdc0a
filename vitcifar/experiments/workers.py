"""The processes that work on one study, told apart from those that were killed.

Each holds a lock on a file of its own beside the storage. The operating system lets go of it when the process ends, in
whatever way: nothing has to be waited for, and a process that only sleeps is not taken for dead.
"""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock

from vitcifar.errors import ConfigError, TrackingError


def refuse_several(what: str, num_processes: int) -> None:
    """Several processes that share every batch make one run; a study is made of many. Raises ConfigError."""
    if num_processes > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"Several processes train one run together, and {what}: start one process.")


class Crew:
    """One process's place among those that work on a study."""

    def __init__(self, storage: Path, study: str) -> None:
        self.storage = storage
        self.prefix = f"{storage.name}.{hashlib.sha256(study.encode()).hexdigest()[:8]}."
        self.name = uuid.uuid4().hex
        self.lock = filelock.FileLock(self.path(self.name))

    def path(self, worker: str) -> Path:
        return self.storage.with_name(f"{self.prefix}{worker}.worker")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time; raises TrackingError where no file can be made."""
        try:
            self.storage.parent.mkdir(parents=True, exist_ok=True)
            held = filelock.FileLock(f"{self.storage}.lock").acquire()
        except OSError as error:
            raise TrackingError(
                f"The storage {self.storage} cannot be made ({error.strerror or error}): name one with --storage."
            ) from error
        with held:
            yield

    def join(self) -> None:
        self.lock.acquire()

    def leave(self) -> None:
        self.lock.release()
        self.path(self.name).unlink(missing_ok=True)

    def is_at_work(self, worker: str | None) -> bool:
        """Whether that process is still there; to be asked while `alone`."""
        if worker is None or not self.path(worker).exists():
            return False
        if worker == self.name:
            return self.lock.is_locked
        lock = filelock.FileLock(self.path(worker))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return True
        lock.release()
        self.path(worker).unlink(missing_ok=True)
        return False

    def others(self) -> bool:
        """Whether another process is at work on the study; to be asked while `alone`."""
        names = [path.name for path in self.storage.parent.iterdir() if path.name.startswith(self.prefix)]
        workers = [name.removeprefix(self.prefix).removesuffix(".worker") for name in names]
        return any(self.is_at_work(worker) for worker in workers if worker != self.name)
