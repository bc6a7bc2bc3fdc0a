"""What a server remembers of its last predictions, and what that says of a version when nobody knows the labels.

Of each image its hash, label, confidence and embedding are kept, never the image. The same image counts once.
"""

import collections
import dataclasses
import datetime
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitcifar.data.dataset import pixel_hash
from vitcifar.evaluation.monitoring import calibration_error, estimate_accuracy, two_sample_test
from vitcifar.inference.session import Prediction
from vitcifar.release.manifest import Manifest, served_evaluation
from vitcifar.release.reference import read_reference

WINDOW = 500  # images of a version
MIN_IMAGES = 50  # in a window, and in a reference, before they say anything
MAX_WINDOWS = 6  # versions; the one that was loaded first is forgotten
REFRESH_SECONDS = 10.0  # between two reports on a window that grows
LEVEL = 0.05  # of the test of drift: how often it alarms without a drift


@dataclasses.dataclass(frozen=True)
class Seen:
    """One image of a window."""

    label: str
    confidence: float
    embedding: np.ndarray | None  # float16 (D,)
    time: float  # seconds of the epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the window of one version says. What it cannot say is None, and why is a sentence in `notes`."""

    version: int | None
    release_digest: str
    num_images: int  # in the window, each once
    num_predictions: int  # since the server has started
    since: str = ""  # UTC, such as 2026-01-31T12:00:00Z, of the oldest image in the window
    until: str = ""
    estimated_accuracy: float | None = None
    estimated_low: float | None = None
    estimated_high: float | None = None
    test_accuracy: float | None = None
    not_confident: float | None = None  # share of the images
    test_not_confident: float | None = None  # share of the test images
    drift_p_value: float | None = None
    drift: bool | None = None
    mmd2: float | None = None
    num_reference: int = 0
    notes: tuple[str, ...] = ()


class Window:
    """The last images that a version has classified. Thread-safe. Raises ReleaseError for a damaged reference."""

    def __init__(self, release: Manifest, digest: str) -> None:
        self.release = release
        self.digest = digest
        self.reference = read_reference(release)  # float16 (M, D), or None
        self.num_predictions = 0
        self._seen: collections.OrderedDict[str, Seen] = collections.OrderedDict()
        self._lock, self._reporting = threading.Lock(), threading.Lock()
        self._report: tuple[float, Report] | None = None  # and when it was made

    def add(self, image: np.ndarray, prediction: Prediction, embedding: np.ndarray | None) -> bool:
        """Remember the prediction of an image uint8 (H, W, 3); its embedding is (D,). Whether the image is new."""
        key = pixel_hash(image)
        half = None if embedding is None else embedding.astype(np.float16)
        seen = Seen(prediction.label, prediction.probability, half, time.time())
        with self._lock:
            self.num_predictions += 1
            is_new = key not in self._seen
            self._seen[key] = seen
            self._seen.move_to_end(key)
            if len(self._seen) > WINDOW:
                self._seen.popitem(last=False)
        return is_new

    def report(self) -> Report:
        """The report; of a window that grows, one that is at most `REFRESH_SECONDS` old."""
        with self._reporting:
            made, report = self._report or (0.0, None)
            stale = report is None or report.num_predictions != self.num_predictions
            if report is None or (stale and time.monotonic() - made > REFRESH_SECONDS):
                report = self._make()
                self._report = (time.monotonic(), report)
            return report

    def _make(self) -> Report:
        with self._lock:
            rows, count = list(self._seen.values()), self.num_predictions
        evaluation = served_evaluation(self.release)
        report = Report(
            version=self.release.version,
            release_digest=self.digest,
            num_images=len(rows),
            num_predictions=count,
            since=utc(min(row.time for row in rows)) if rows else "",
            until=utc(max(row.time for row in rows)) if rows else "",
            test_accuracy=evaluation.get("accuracy"),
            num_reference=0 if self.reference is None else len(self.reference),
        )
        if len(rows) < MIN_IMAGES:
            return dataclasses.replace(report, notes=(f"{MIN_IMAGES} different images are needed for a report.",))
        confidences = np.array([row.confidence for row in rows])
        fields = {**estimate(confidences, evaluation), **self._confident(confidences, evaluation), **self._drift(rows)}
        notes = tuple(fields.pop(name) for name in ("estimate_note", "confident_note", "drift_note") if name in fields)
        return dataclasses.replace(report, **fields, notes=notes)

    def _confident(self, confidences: np.ndarray, evaluation: dict[str, Any]) -> dict[str, Any]:
        if self.release.threshold == 0:
            return {"confident_note": "This version has no threshold of confidence."}

        def share(values: Sequence[float] | np.ndarray) -> float:
            return float(np.mean([not self.release.is_confident(float(value)) for value in values]))

        tested = evaluation.get("confidences") or ()
        return {"not_confident": share(confidences), "test_not_confident": share(tested) if len(tested) else None}

    def _drift(self, rows: Sequence[Seen]) -> dict[str, Any]:
        if self.reference is None:
            return {"drift_note": "This version was released without reference embeddings: no test of drift."}
        if len(self.reference) < MIN_IMAGES:
            return {"drift_note": f"It has {len(self.reference)} reference embeddings, too few for a test of drift."}
        embeddings = [row.embedding for row in rows if row.embedding is not None]
        if len(embeddings) < len(rows) or embeddings[0].shape != self.reference.shape[1:]:
            return {"drift_note": "The embeddings of this version do not fit its reference: no test of drift."}
        test = two_sample_test(self.reference, np.stack(embeddings))
        return {"drift_p_value": test.p_value, "drift": test.p_value <= LEVEL, "mmd2": test.mmd2}


def estimate(confidences: np.ndarray, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The estimated accuracy of a window; how well calibrated its version is, the evaluation on test images says."""
    scores = {name: np.asarray(evaluation.get(name) or ()) for name in ("confidences", "labels", "predictions")}
    known = len(scores["confidences"]) == len(scores["labels"]) == len(scores["predictions"]) > 0
    error = calibration_error(scores["confidences"], scores["labels"] == scores["predictions"]) if known else 0.0
    estimated = estimate_accuracy(confidences, calibration_error=error)
    fields: dict[str, Any] = {
        "estimated_accuracy": estimated.accuracy,
        "estimated_low": estimated.low,
        "estimated_high": estimated.high,
    }
    return fields if known else {**fields, "estimate_note": "How well it is calibrated was not recorded."}


class Monitor:
    """The windows of the versions that a server has served lately. Thread-safe."""

    def __init__(self) -> None:
        self._windows: collections.OrderedDict[str, Window] = collections.OrderedDict()
        self._lock = threading.Lock()

    def window(self, release: Manifest, digest: str) -> Window:
        """The window of a version, by the digest of its release; a new one if it has none."""
        with self._lock:
            if digest not in self._windows:
                self._windows[digest] = Window(release, digest)
            self._windows.move_to_end(digest)
            while len(self._windows) > MAX_WINDOWS:
                self._windows.popitem(last=False)
            return self._windows[digest]

    def reports(self) -> list[Report]:
        """The report on each version that has classified anything, the newest version first."""
        windows = [window for window in [*self._windows.values()] if window.num_predictions]
        return sorted((window.report() for window in windows), key=lambda one: one.version or 0, reverse=True)


def utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
