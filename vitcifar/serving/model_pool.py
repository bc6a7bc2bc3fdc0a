"""The versions that a page answers with: each opened once, the least used put away, an alias followed as it moves.

A version is swapped in only when it is whole, open and warm: until then, and when it is broken, the former goes on.
"""

import dataclasses
import datetime
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from vitcifar.errors import VitCifarError
from vitcifar.registry.registry import latest_number
from vitcifar.serving.loaded_model import LoadedModel, open_version

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry, Version

MAX_OPEN = 3  # versions in memory: the one that is followed and the last that somebody chose
RETRY_SECONDS = 30.0  # before a version that could not be opened is tried again


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What a page shows of its versions; `serial` grows with every change."""

    serial: int
    current: LoadedModel
    versions: tuple["Version", ...]
    moved: str = ""  # what changed last, for those who were watching
    problem: str = ""  # what is wrong now, for everybody

    def aliases(self, number: int | None) -> tuple[str, ...]:
        """The aliases that a version holds now."""
        return next((version.aliases for version in self.versions if version.number == number), ())


class ModelPool:
    """Opens versions of one model on demand and follows one alias; any number of threads may ask at once.

    `spec` is what answers when nobody chose: an alias or `latest`, which are followed, or a number, which is not.
    Raises RegistryError or ReleaseError when that one cannot be opened at the start.
    """

    def __init__(self, registry: "Registry", spec: str, *, num_threads: int = 0) -> None:
        self.registry = registry
        self.spec = spec
        self.num_threads = num_threads
        self._open: OrderedDict[int, LoadedModel] = OrderedDict()
        self._lock = threading.Lock()  # over _open; held for an instant
        self._opening = threading.Lock()  # one version is opened at a time
        self._stop = threading.Event()
        self._refused: tuple[int, float, str] = (0, 0.0, "")  # number, when, why
        current = self._bring(registry.resolve(spec))
        self.state = State(serial=1, current=current, versions=tuple(registry.list()))

    def get(self, choice: str = "") -> LoadedModel:
        """The version that somebody chose (a number, an alias, `latest`), opened; nothing chosen: the current one.

        Raises RegistryError when there is none, ReleaseError when it is broken.
        """
        state = self.state
        if choice in ("", self.spec):
            return state.current
        for version in state.versions:
            if choice == str(version.number) or choice in version.aliases:
                return self._bring(version.number)
        return self._bring(self.registry.resolve(choice))

    def follow(self, every: float = 2.0) -> None:
        """Look at the registry every so many seconds, in a thread of its own, until `close`."""
        threading.Thread(target=self._follow, args=(every,), daemon=True, name="follow").start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()

    def look(self) -> State:
        """Look at the registry once: take up the version that is meant now, and say so."""
        before = self.state
        try:
            versions = tuple(self.registry.list())
            number = holder(versions, self.spec)
            current, problem = self._take_up(number)
        except VitCifarError as error:
            versions, current, problem = before.versions, before.current, f"{error} {self._goes_on()}"
        moved = before.moved
        if current is not before.current:
            now = datetime.datetime.now().strftime("%H:%M:%S")
            moved = f"{self.spec} moved from version {before.current.version} to version {current.version} at {now}."
        after = State(serial=before.serial, current=current, versions=versions, moved=moved, problem=problem)
        if after != before:
            self.state = dataclasses.replace(after, serial=before.serial + 1)
        return self.state

    def _follow(self, every: float) -> None:
        while not self._stop.wait(every):
            self.look()

    def _take_up(self, number: int | None) -> tuple[LoadedModel, str]:
        """The version that should answer now, or the former one and why."""
        current = self.state.current
        if number is None:
            return current, f"No version is {self.spec} any more. {self._goes_on()}"
        if number == current.version:
            return current, ""
        refused, when, why = self._refused
        if number == refused and time.monotonic() - when < RETRY_SECONDS:
            return current, why
        try:
            return self._bring(number), ""
        except VitCifarError as error:
            why = f"{self.spec} is version {number} now, which cannot be opened: {error} {self._goes_on()}"
            self._refused = (number, time.monotonic(), why)
            return current, why

    def _goes_on(self) -> str:
        return f"Version {self.state.current.version} goes on answering."

    def _bring(self, number: int) -> LoadedModel:
        if (found := self._find(number)) is not None:
            return found
        with self._opening:
            if (found := self._find(number)) is not None:
                return found
            opened = open_version(self.registry, number, num_threads=self.num_threads)
            with self._lock:
                self._open[number] = opened
                if len(self._open) > MAX_OPEN:
                    kept = self.state.current.version
                    del self._open[next(key for key in self._open if key not in (kept, number))]
            return opened

    def _find(self, number: int) -> LoadedModel | None:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
            return self._open.get(number)


def holder(versions: tuple["Version", ...], spec: str) -> int | None:
    """The number that an alias, `latest` or a number means among these versions; None when there is none."""
    if spec == "latest":
        return latest_number(versions)
    return next((v.number for v in versions if spec in v.aliases or spec.lstrip("vV") == str(v.number)), None)
