"""One process at a time moves the aliases of a model: a file lock beside a SQLite store, a queue of tags on a server.

MLflow cannot move an alias conditionally. On a server, those who want to move one queue as in Lamport's bakery
algorithm (1974): each writes a hidden tag of its own, draws a number above all others, and waits for those with a lower
one. It needs no atomic operation, only that who reads a tag sees what was written before. A killed process leaves its
tag: the next one removes it when it has not changed for `LEASE_SECONDS`, by its own clock.
"""

import contextlib
import datetime
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import mlflow

from vitcifar import stores
from vitcifar.errors import RegistryError, TrackingError
from vitcifar.progress import notify
from vitcifar.tracking import reaching

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry

PREFIX = "mlflow.vitcifar.lease/"  # of a tag of the registered model, which MLflow's pages do not show
LEASE_SECONDS = 30.0  # without a change of its tag, a process counts as dead; after half of it, it moves nothing itself
MAX_WAIT_SECONDS = 180.0
POLL_SECONDS = 0.2


@contextlib.contextmanager
def alone(registry: "Registry") -> Iterator[Callable[[], None]]:
    """Let no other process be in such a block of the model: of the whole store, if it is a SQLite file.

    The function that is returned is called before the alias is moved: it raises RegistryError when the process was held
    up so long that others may go on without it.
    """
    if mlflow.get_tracking_uri().startswith("sqlite:///"):
        with stores.alone():
            yield lambda: None
        return
    place = _Place(registry)
    try:
        place.wait()
        yield place.check
    finally:
        place.leave()


class _Place:
    """A place in the queue of a model."""

    def __init__(self, registry: "Registry") -> None:
        self.registry = registry
        self.key = f"{PREFIX}{secrets.token_hex(8)}"
        self.number = 0  # not drawn yet
        self.written = 0.0
        self._seen: dict[
            str, tuple[str | None, float]
        ] = {}  # key -> the value of another's tag, and when it was new here

    def wait(self) -> None:
        """Queue, and return when no other is before this place. Raises RegistryError after `MAX_WAIT_SECONDS`."""
        self._write()
        self.number = 1 + max(self._others().values(), default=0)
        self._write()
        start, told = time.monotonic(), False
        while before := [key for key, number in self._others().items() if self._is_before(key, number)]:
            waited = time.monotonic() - start
            if waited > MAX_WAIT_SECONDS:
                raise RegistryError(
                    f"{len(before)} other processes are moving aliases of {self.registry.model_name}: try again."
                )
            if waited > 3 and not told:
                notify(f"Waiting for another process that moves aliases of {self.registry.model_name}.")
                told = True
            if time.monotonic() - self.written > LEASE_SECONDS / 4:
                self._write()
            time.sleep(min(POLL_SECONDS * len(before), LEASE_SECONDS / 20))  # those at the back ask less often
        self._write()  # the whole time is left for what follows

    def check(self) -> None:
        if self.written and time.monotonic() - self.written > LEASE_SECONDS / 2:
            raise RegistryError(
                f"The registry was too slow: other processes may move aliases of {self.registry.model_name} by now. "
                "Try again."
            )

    def leave(self) -> None:
        with contextlib.suppress(TrackingError):  # it ends by itself
            self._delete(self.key)

    def _is_before(self, key: str, number: int) -> bool:
        return number == 0 or (number, key) < (self.number, self.key)

    def _others(self) -> dict[str, int]:
        """The number of every other place, 0 for one that is drawing it; dead ones are removed.

        Raises RegistryError when others have removed this one.
        """
        tags, now = places(self.registry), time.monotonic()
        if self.key not in tags:
            raise RegistryError(
                f"The registry was too slow, and another process has the turn of this one to move aliases of "
                f"{self.registry.model_name}: try again."
            )
        numbers = {}
        for key, value in tags.items():
            if key == self.key:
                continue
            if self._seen.get(key, (None, 0.0))[0] != value:
                self._seen[key] = (value, now)
            if now - self._seen[key][1] > LEASE_SECONDS:
                notify(f"Going on without a process that has ended: {describe(value)}.")
                self._delete(key)
            else:
                numbers[key] = _number(value)
        return numbers

    def _write(self) -> None:
        self.check()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        place = {"number": self.number, "when": now, "host": socket.gethostname(), "pid": os.getpid()}
        self.written = time.monotonic()  # before others see it
        with reaching(mlflow.get_tracking_uri()):
            self.registry.client.set_registered_model_tag(self.registry.model_name, self.key, json.dumps(place))

    def _delete(self, key: str) -> None:
        with reaching(mlflow.get_tracking_uri()):
            self.registry.client.delete_registered_model_tag(self.registry.model_name, key)


def places(registry: "Registry") -> Mapping[str, str]:
    """The tags of those who queue for a model, or were killed while they did: key -> value. Raises TrackingError."""
    with reaching(mlflow.get_tracking_uri()):
        stored = registry.client.get_registered_model(registry.model_name).tags
    return {key: value for key, value in stored.items() if key.startswith(PREFIX)}


def _number(value: str) -> int:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return int(json.loads(value)["number"])
    return 0  # not written by this vitcifar: it is waited for, and removed as a dead one


def written(value: str) -> float:
    """When the process of a tag wrote it, by its clock, in seconds since 1970; 0 if it does not say."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return datetime.datetime.fromisoformat(json.loads(value)["when"]).timestamp()
    return 0.0


def describe(value: str) -> str:
    """The process of a tag, for people."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        place = json.loads(value)
        return f"process {int(place['pid'])} on {str(place['host'])[:100]!r}"
    return "an unknown process"
