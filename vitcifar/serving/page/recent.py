"""How long the last predictions of the page took."""

import collections
import threading

from vitcifar.inference.session import Prediction
from vitcifar.serving.loaded_model import LoadedModel

MAX_RECENT = 100  # predictions of a version


class RecentTimes:
    """The total times, in milliseconds, of the last predictions of each version, by whoever asked. Thread-safe."""

    def __init__(self) -> None:
        self._times: dict[str, collections.deque[float]] = {}
        self._lock = threading.Lock()

    def add(self, model: LoadedModel, prediction: Prediction) -> tuple[float, ...]:
        """Record a prediction; returns the times of its version, the newest last."""
        with self._lock:
            times = self._times.setdefault(model.name, collections.deque(maxlen=MAX_RECENT))
            if prediction.timing:
                times.append(prediction.timing.total_ms)
            return tuple(times)
