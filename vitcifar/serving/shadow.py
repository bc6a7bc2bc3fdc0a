"""A challenger in the shadow: it predicts the images that the champion answers, and nobody sees what it says.

It runs in a process of its own with the lowest priority (shadow_process.py), one image at a time. An image that comes
while it is busy is dropped, so that no answer waits for it; only images that somebody marks wait for their turn.
"""

import atexit
import contextlib
import dataclasses
import json
import logging
import queue
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from vitcifar.errors import RegistryError, VitCifarError
from vitcifar.inference.session import Prediction
from vitcifar.registry.registry import select
from vitcifar.release.cache import lock
from vitcifar.release.manifest import MANIFEST_FILE, sha256_of
from vitcifar.release.served import served_file
from vitcifar.serving import shadow_process
from vitcifar.serving.feedback import Entry, FeedbackStore
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import RETRY_SECONDS, ModelPool, PoolState
from vitcifar.serving.monitor import Window

LOG = logging.getLogger(__name__)
PRIORITY = shadow_process.IDLE
# Between two images: what this process does for each takes time from the answers. Of vit_tiny with 16 clients (2 cores)
# p50 was 1.15 times as long without this pause.
PAUSE_SECONDS = 0.02
MAX_MARKED = 64  # images that wait, each at most 3 MB
ROOT = Path(__file__).parents[2]


@dataclasses.dataclass
class Agreement:
    """How often a challenger said what a champion answered, since the server has started."""

    version: int | None  # the champion
    shadow: int
    agreed: int = 0
    disagreed: int = 0
    dropped: int = 0  # because the challenger was busy
    failed: int = 0

    @property
    def share(self) -> float | None:
        """The share of the images that both predicted on which they agree."""
        both = self.agreed + self.disagreed
        return self.agreed / both if both else None

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "agreement": self.share}


@dataclasses.dataclass(frozen=True)
class Job:
    """An image for the challenger: with the champion's prediction, or with what somebody said of it."""

    model: LoadedModel
    image: np.ndarray
    label: str
    entry: Entry | None = None
    store: FeedbackStore | None = None


class Shadow:
    """Predicts with the version that `spec` selects, an alias or a number, beside the version that a pool serves.

    Without such a version, or while it is the one that serves, it waits. Raises RegistryError for neither.
    """

    def __init__(self, pool: ModelPool, spec: str) -> None:
        self.pool = pool
        self.spec = spec.removeprefix("@")
        self.problem = ""  # why it predicts nothing now
        self._agreements: dict[tuple[int | None, int], Agreement] = {}
        self._jobs: queue.Queue[Job | None] = queue.Queue(1)
        self._marked: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._known: tuple[PoolState | None, int | None] = (None, None)
        self._child: Child | None = None
        self._failed = -RETRY_SECONDS  # when
        self._thread = threading.Thread(target=self._work, daemon=True, name="shadow")
        if select(pool.state.versions, self.spec) is None and self.spec.lstrip("vV").isdecimal():
            raise RegistryError(f"There is no version {spec} for the shadow: type --shadow challenger.")
        self._thread.start()

    def agreements(self) -> list[Agreement]:
        """What was counted, for each pair of versions; the newest pair last."""
        return [*self._agreements.values()]

    def number(self) -> int | None:
        """The challenger's version now; None while there is none besides the one that serves."""
        state = self.pool.state
        if state is not self._known[0]:
            version = select(state.versions, self.spec)
            other = version is not None and version.number != state.current.version
            self._known = (state, version.number if version and other else None)
        return self._known[1]

    def offer(self, model: LoadedModel, image: np.ndarray, prediction: Prediction) -> None:
        """Take an image uint8 (H, W, 3) that the served version has just predicted, or drop it. Never waits."""
        if model.version != self.pool.state.current.version or (number := self.number()) is None:
            return
        try:
            self._jobs.put_nowait(Job(model, image, prediction.label))
        except queue.Full:
            self._agreement(model, number).dropped += 1

    def mark(self, store: FeedbackStore, model: LoadedModel, entry: Entry, image: np.ndarray) -> None:
        """Predict an image that somebody has marked, and store its entry for the challenger as well."""
        if self.number() is not None and self._marked.qsize() < MAX_MARKED:
            self._marked.put(Job(model, image, entry.label, entry, store))
            with contextlib.suppress(queue.Full):
                self._jobs.put_nowait(None)  # wakes the thread, which looks at those first

    def close(self) -> None:
        """Stop the child."""
        if self._child:
            self._child.stop()

    def _agreement(self, model: LoadedModel, number: int) -> Agreement:
        return self._agreements.setdefault((model.version, number), Agreement(model.version, number))

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                while not self._marked.empty():
                    self._run(self._marked.get())
                if job is not None:
                    self._run(job)
            except Exception:  # whatever happens here, the champion answers
                LOG.exception("The challenger in the shadow failed.")
            time.sleep(PAUSE_SECONDS)

    def _run(self, job: Job) -> None:
        number = self.number()
        if number is None or number == job.model.version or time.monotonic() - self._failed < RETRY_SECONDS:
            return
        agreement = self._agreement(job.model, number)
        try:
            child = self._open(number)
            prediction, embedding = child.predict(job.image)
        except (VitCifarError, OSError, ValueError) as error:
            agreement.failed += 1
            self._failed, self.problem = time.monotonic(), f"Version {number} cannot predict in the shadow."
            LOG.warning("%s %s", self.problem, error)
            self.close()
            return
        self.problem = ""
        is_new = child.window.add(job.image, prediction, embedding)
        if job.entry and job.store:
            job.store.add(child.entry(job.entry, prediction), None)
        if is_new and prediction.label == job.label:
            agreement.agreed += 1
        elif is_new:
            agreement.disagreed += 1

    def _open(self, number: int) -> "Child":
        if self._child is None or self._child.number != number or not self._child.alive:
            self.close()
            self._child = Child(self.pool, number)
        return self._child


class Child:
    """The process that predicts with one version. Raises VitCifarError or OSError when it does not start."""

    def __init__(self, pool: ModelPool, number: int) -> None:
        release = pool.registry.pull(number)
        self.number = number
        self.digest = sha256_of(release.path(MANIFEST_FILE))
        self.window: Window = pool.monitor.window(release, self.digest)
        with contextlib.suppress(OSError):  # a file system without locks
            # The folder stays in the cache as long as this process is used.
            weakref.finalize(self, lock(release.path(MANIFEST_FILE).parent, shared=True).close)
        path, openvino = served_file(release)
        arguments = (str(path), PRIORITY, openvino)
        self._process = subprocess.Popen(
            [sys.executable, "-m", shadow_process.__name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        atexit.register(self.stop)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def predict(self, image: np.ndarray) -> tuple[Prediction, np.ndarray | None]:
        """The prediction of an image uint8 (H, W, 3), and its embedding (D,) if there is one. Raises OSError."""
        sent, received = self._process.stdin, self._process.stdout
        assert sent is not None and received is not None
        sent.write(json.dumps({"shape": image.shape}).encode() + b"\n" + np.ascontiguousarray(image).tobytes())
        sent.flush()
        answer: dict[str, Any] = json.loads(received.readline() or b'{"error": "its process has ended"}')
        if "error" in answer:
            raise OSError(answer["error"])
        size = int(answer["embedding"])
        embedding = np.frombuffer(received.read(4 * size), np.float32) if size else None
        return Prediction(**answer["prediction"]), embedding

    def entry(self, entry: Entry, prediction: Prediction) -> Entry:
        """What somebody said of the champion's prediction, as said of this version's."""
        return dataclasses.replace(
            entry,
            version=self.number,
            release_digest=self.digest,
            label=prediction.label,
            probability=prediction.probability,
            source="shadow",
        )

    def stop(self) -> None:
        """Kill the process."""
        atexit.unregister(self.stop)
        with contextlib.suppress(OSError), self._process as process:  # closes the pipes and waits
            process.kill()
