"""The versions that the page serves: each is loaded once, and the version of an alias is replaced as the alias moves.

A version replaces the current one only when it is verified, loaded and warm; until then the current one serves.
"""

import dataclasses
import datetime
import logging
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from vitcifar.errors import ImageError, RegistryError, VitCifarError
from vitcifar.inference.session import Prediction
from vitcifar.registry.registry import Registry, Version, select
from vitcifar.serving.loaded_model import LoadedModel, open_version
from vitcifar.serving.monitor import Monitor

LOG = logging.getLogger(__name__)
MAX_RECENT = 2  # versions in memory besides the current one
MAX_SPEC = 100  # characters of what names a version
RETRY_SECONDS = 30.0  # before a version that could not be loaded is tried again


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolState:
    """What the page shows of its versions; `serial` grows with every change."""

    serial: int
    current: LoadedModel
    versions: tuple[Version, ...]
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of the registered model: the history of aliases
    moved: str = ""  # the last move of the alias
    problem: str = ""  # why `current` may not be the version that it should be; the log says more

    def aliases(self, number: int | None) -> tuple[str, ...]:
        """The aliases that point to a version now."""
        return next((version.aliases for version in self.versions if version.number == number), ())


class ModelPool:
    """Loads versions of one model on demand and follows an alias. Thread-safe.

    `spec` selects the version that serves by default: an alias or `latest`, which are followed, or a number.
    Raises RegistryError or ReleaseError when this version cannot be loaded.
    """

    def __init__(self, registry: Registry, spec: str) -> None:
        self.registry = registry
        self.spec = spec.removeprefix("@")
        self.monitor = Monitor()  # is told of every prediction
        self.watch: Callable[[LoadedModel, np.ndarray, Prediction], None] | None = None  # so is this
        self._recent: dict[int, LoadedModel] = {}  # by number; replaced, never modified, so reading needs no lock
        self._loading = threading.Lock()
        self._stop = threading.Event()
        self._failed: tuple[int, float, str] = (0, 0.0, "")  # number, time, reason of the last failure
        current = self._load(registry.resolve(spec))
        versions, tags = registry.read()
        self.state = PoolState(serial=1, current=current, versions=tuple(versions), tags=tags)

    def get(self, spec: str = "") -> LoadedModel:
        """The version of a number, an alias or `latest`, loaded; the current one by default. A new one is known from
        the next `refresh` on.

        Raises RegistryError when there is no such version, ReleaseError when it cannot be loaded.
        """
        state = self.state
        if spec in ("", self.spec):
            return state.current
        version = select(state.versions, spec)
        if version is None:  # the registry is not asked: a stranger's request would wait for it
            raise RegistryError(f"{state.current.model_name} had no version {spec[:MAX_SPEC]!r} when it was last read.")
        return state.current if version.number == state.current.version else self._load(version.number)

    def follow(self, poll_seconds: float = 2.0) -> None:
        """Refresh every `poll_seconds`, in a thread, until `close`."""

        def poll() -> None:
            while not self._stop.wait(poll_seconds):
                self.refresh()

        threading.Thread(target=poll, daemon=True, name="follow").start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()

    def refresh(self) -> PoolState:
        """List the registry once and serve the version that `spec` selects now."""
        before = self.state
        try:
            versions, tags = self.registry.read()
            current, problem = self._serve(select(versions, self.spec))
        except VitCifarError as error:
            versions, tags, current = before.versions, before.tags, before.current
            problem = f"The registry cannot be read. {self._still_serving()}"
            if problem != before.problem:
                LOG.warning("%s %s", problem, error)
        moved = before.moved
        if current is not before.current:
            now = datetime.datetime.now().strftime("%H:%M:%S")
            moved = f"{self.spec} moved from version {before.current.version} to version {current.version} at {now}."
        after = PoolState(
            serial=before.serial, current=current, versions=tuple(versions), tags=tags, moved=moved, problem=problem
        )
        if after != before:
            self.state = dataclasses.replace(after, serial=before.serial + 1)
        return self.state

    def _serve(self, version: Version | None) -> tuple[LoadedModel, str]:
        """The version to serve, and the problem if it is not the one that `spec` selects."""
        current = self.state.current
        if version is None:
            return current, f"The registry has no version {self.spec} any more. {self._still_serving()}"
        number = version.number
        if number == current.version:
            return current, ""
        failed, when, reason = self._failed
        if number == failed and time.monotonic() - when < RETRY_SECONDS:
            return current, reason
        try:
            return self._load(number), ""
        except VitCifarError as error:
            reason = f"{self.spec} points to version {number}, which cannot be loaded. {self._still_serving()}"
            LOG.warning("%s %s", reason, error)
            self._failed = (number, time.monotonic(), reason)
            return current, reason

    def _still_serving(self) -> str:
        return f"Version {self.state.current.version} is still serving."

    def _load(self, number: int) -> LoadedModel:
        if (model := self._recent.get(number)) is not None:
            return model
        with self._loading:  # one version at a time; another thread may just have loaded this one
            if (model := self._recent.get(number)) is None:
                model = self._observe(open_version(self.registry, number, concurrent=True))
                self._recent = dict([*self._recent.items(), (number, model)][-MAX_RECENT:])
            return model

    def _observe(self, model: LoadedModel) -> LoadedModel:
        window = self.monitor.window(model.manifest, model.digest)

        def observe(image: np.ndarray, prediction: Prediction, embedding: np.ndarray | None) -> None:
            window.add(image, prediction, embedding)
            if self.watch:
                self.watch(model, image, prediction)

        model.classifier.observe = observe
        return model


def sentence_for_visitors(pool: ModelPool, error: VitCifarError, spec: str) -> str:
    """What a visitor reads of an error. What names files and addresses of the server goes to its log instead."""
    if isinstance(error, ImageError):
        return str(error)
    LOG.warning("%s", error)
    spec = (spec or "")[:MAX_SPEC] or pool.spec
    if select(pool.state.versions, spec):
        return f"Version {spec} cannot be loaded: choose another."
    known = ", ".join(str(version.number) for version in pool.state.versions[:20])
    return f"There is no version {spec!r}: choose one of {known}."
