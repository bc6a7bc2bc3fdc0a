"""One ONNX model on the CPU: images in, calibrated predictions and their timing out.

Shapes: N images, H and W their height and width in pixels, K classes, D the width of an embedding.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

from vitcifar.data.dataset import group_by_size
from vitcifar.data.image import read_image
from vitcifar.errors import ImageError, ReleaseError
from vitcifar.inference.image_statistics import ImageStatistics
from vitcifar.inference.machine import available_cores
from vitcifar.inference.onnx_file import (
    EMBEDDING,
    check_graph,
    embedding_size,
    open_session,
    read_class_names,
    reason_of_onnxruntime,
    size_of,
)
from vitcifar.inference.openvino_session import OpenVinoSession

# Limits of one batch, whose images have the same size. They bound the memory of a request.
MAX_BATCH = 32
MAX_BATCH_PIXELS = 4_000_000
MAX_DECODED = 64  # images in memory at a time, of those that are decoded when they are taken
SMALL_MS = 5.0  # of a prediction; waking a second thread for less may take longer than it saves
MAX_TWICE = 200 * 2**20  # bytes of a file whose weights may be in memory twice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Duration of one prediction in milliseconds: decode the file, run the model, everything together."""

    decode_ms: float
    inference_ms: float
    total_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image's prediction: the most likely class, every class's probability (largest first), and the release.

    `ood_score` is how unlike the training data the image is, 1 = at the threshold; None for a release that cannot say.
    """

    label: str
    probabilities: dict[str, float]
    release_id: str
    timing: Timing | None = None
    ood_score: float | None = None

    @property
    def out_of_distribution(self) -> bool:
        """Whether the image is unlike the training data."""
        return self.ood_score is not None and self.ood_score > 1

    @property
    def probability(self) -> float:
        """The probability of the label."""
        return self.probabilities[self.label]

    def to_dict(self, model: str, version: int | None) -> dict[str, Any]:
        """What every entry point returns: label, probabilities, model, version, release_id and, if known, whether the
        image is out of distribution, and timing."""
        fields: dict[str, Any] = {
            "label": self.label,
            "probabilities": self.probabilities,
            "model": model,
            "version": version,
            "release_id": self.release_id,
        }
        if self.ood_score is not None:
            fields |= {"out_of_distribution": self.out_of_distribution, "ood_score": self.ood_score}
        return fields if self.timing is None else {**fields, "timing": dataclasses.asdict(self.timing)}


Session: TypeAlias = onnxruntime.InferenceSession | OpenVinoSession
# Told of a prediction: the pixels uint8 (H, W, 3), the prediction, and the embedding (D,) if the release has any.
Observer = Callable[[np.ndarray, Prediction, np.ndarray | None], None]


class OnnxClassifier:
    """An open ONNX model of a release: `image` uint8 (N, H, W, 3) -> `logits` and `probabilities` float32 (N, K), and
    `embedding` (N, D), the input of its head.

    With the `statistics` of its training images, the prediction of a file says whether it is out of distribution.
    `num_threads` 0 uses every core available to this process. Several threads may call it at the same time. With
    `concurrent`, predictions at the same time use one thread each, and one alone every core, unless `warm` finds a
    small network faster with one thread; files above `MAX_TWICE` keep one session. `observe`, if it is set, is told of
    every prediction. `openvino` is the precision (fp32, bf16) in which OpenVINO runs the file; "" = onnxruntime does.
    Raises ReleaseError for a file that is broken, is not an export of vitcifar or refers to others.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        num_threads: int = 0,
        concurrent: bool = False,
        statistics: ImageStatistics | None = None,
        openvino: str = "",
    ) -> None:
        self.statistics = statistics
        self.name = "The model" if isinstance(model, bytes) else str(model)
        self.num_threads = num_threads or available_cores()
        # Before OpenVINO, onnxruntime opens the file too: it refuses weights in other files.
        checked = open_session(model, self.name, self.num_threads, check_only=bool(openvino))
        metadata = checked.get_modelmeta().custom_metadata_map
        check_graph(checked, self.name)
        self.class_names = read_class_names(metadata, self.name)
        self.embedding_size = embedding_size(checked)  # 0 for a release without

        def another(num_threads: int) -> Session:
            if openvino:
                return OpenVinoSession(model, self.name, openvino, num_threads)
            return open_session(model, self.name, num_threads)

        self._session: Session = another(self.num_threads) if openvino else checked
        del checked  # what was opened for the checks alone takes memory
        self._single = self._session
        # onnxruntime packs the weights again in each session, and shares packed ones in C only: docs/decisions.md.
        if concurrent and self.num_threads > 1 and size_of(model) <= MAX_TWICE:
            self._single = another(1)
        self._alone = self._session
        self._running, self._lock = 0, threading.Lock()
        self.observe: Observer | None = None
        self.release_id = metadata.get("release_id", "")
        self.image_size = int(metadata.get("image_size", 0))
        self.temperature = float(metadata.get("temperature", 1.0))
        self.max_batch = min(MAX_BATCH, int(metadata.get("max_batch", MAX_BATCH)))

    def logits(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Logits float32 (N, K) of images, each uint8 (H, W, 3) of any size, in the same order. Raises ImageError."""
        with self._counted():
            return self._run(["logits"], images)[0]

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Calibrated probabilities float32 (N, K) of images, as for `logits`."""
        with self._counted():
            return self._run(["probabilities"], images)[0]

    def logits_and_embeddings(self, images: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, K) and embeddings (N, D) of images in one pass, float32; D is 0 for a release without."""
        with self._counted():
            if self.embedding_size:
                logits, embeddings = self._run(["logits", EMBEDDING], images)
                return logits, embeddings
            return self._run(["logits"], images)[0], np.empty((len(images), 0), np.float32)

    def predict(
        self,
        data: bytes | Path,
        name: str = "",
        *,
        read: Callable[[bytes | Path, str], np.ndarray] = read_image,
        with_ood: bool = True,
    ) -> Prediction:
        """Decode (with `read`) and classify one image file, called `name` in errors; `with_ood` also says whether it
        is unlike the training data. Raises ImageError.
        """
        start = time.perf_counter()
        with self._counted():
            image = read(data, name)  # (H, W, 3)
            decoded = time.perf_counter()
            outputs = self._run(self._wanted, [image])  # (1, K), and (1, D) for the observer
        inferred = time.perf_counter()
        score = self.statistics.relative_distance(image) if self.statistics and with_ood else None
        prediction = self._prediction(outputs[0][0], ood_score=score)
        end = time.perf_counter()
        timing = Timing(
            decode_ms=1e3 * (decoded - start), inference_ms=1e3 * (inferred - decoded), total_ms=1e3 * (end - start)
        )
        prediction = dataclasses.replace(prediction, timing=timing)
        self._tell([image], [prediction], outputs)
        return prediction

    def predict_images(self, images: Sequence[np.ndarray], *, observed: bool = True) -> list[Prediction]:
        """Classify images, each uint8 (H, W, 3) of any size, in order and without timing; `observe` is told of them if
        they are `observed`. Raises ImageError."""
        with self._counted():
            outputs = self._run(self._wanted, images)
        predictions = [self._prediction(probabilities) for probabilities in outputs[0]]
        if observed:
            self._tell(images, predictions, outputs)
        return predictions

    @property
    def _wanted(self) -> list[str]:
        return ["probabilities", EMBEDDING] if self.observe and self.embedding_size else ["probabilities"]

    def _tell(self, images: Sequence[np.ndarray], predictions: list[Prediction], outputs: list[np.ndarray]) -> None:
        if (observe := self.observe) is not None:
            embeddings = outputs[1] if len(outputs) > 1 else [None] * len(predictions)
            for image, prediction, embedding in zip(images, predictions, embeddings, strict=True):
                observe(image, prediction, embedding)

    def _prediction(self, probabilities: np.ndarray, ood_score: float | None = None) -> Prediction:
        values, order = probabilities.tolist(), np.argsort(-probabilities, kind="stable").tolist()  # (K,)
        ranked = {self.class_names[index]: values[index] for index in order}
        label = self.class_names[order[0]]
        return Prediction(label=label, probabilities=ranked, release_id=self.release_id, ood_score=ood_score)

    def warm(self) -> None:
        """Run blank images, so that memory is allocated before the first request; choose the session of one alone."""
        every_core, one_thread = self._milliseconds(self._session), np.inf
        if self._single is not self._session:
            one_thread = self._milliseconds(self._single)
        self._alone = self._single if one_thread <= min(every_core, SMALL_MS) else self._session

    def _milliseconds(self, session: Session) -> float:
        """The median of a few predictions, with pauses as between requests; a large network runs once."""
        side, times = self.image_size or 32, list[float]()
        while len(times) < 8 and (not times or times[-1] < 10 * SMALL_MS):
            time.sleep(1e-3)
            start = time.perf_counter()
            self._infer(["probabilities"], np.zeros((1, side, side, 3), np.uint8), session)
            times.append(1e3 * (time.perf_counter() - start))
        return float(np.median(times))

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def _infer(self, outputs: list[str], batch: np.ndarray, session: Session) -> list[np.ndarray]:
        try:
            arrays = [np.asarray(values, np.float32) for values in session.run(outputs, {"image": batch})]
        except Exception as error:  # onnxruntime's errors have no common class
            raise ReleaseError(
                f"{self.name} failed to run ({reason_of_onnxruntime(error)}): choose another version."
            ) from None
        for name, values in zip(outputs, arrays, strict=True):
            if values.shape != (expected := (len(batch), self._width(name))):
                raise ReleaseError(
                    f"{self.name} returns {name} of shape {values.shape}, expected {expected}: choose another version."
                )
        return arrays

    def _width(self, output: str) -> int:
        return self.embedding_size if output == EMBEDDING else len(self.class_names)

    def _run(self, outputs: list[str], images: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
        if len(images) == 1:  # a request: the rest is for many
            _check_image(images[0], 0)
            return self._infer(outputs, images[0][None], self._idle_session())
        starts = range(0, max(1, len(images)), MAX_DECODED)
        parts = [self._run_some(outputs, images[s : s + MAX_DECODED], s) for s in starts]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _run_some(self, outputs: list[str], images: np.ndarray | Sequence[np.ndarray], first: int) -> list[np.ndarray]:
        for index, image in enumerate(images, first):
            _check_image(image, index)
        results = [np.empty((len(images), self._width(name)), np.float32) for name in outputs]
        for indices in group_by_size(images, self.max_batch, max_pixels=MAX_BATCH_PIXELS):
            batch = np.stack([images[index] for index in indices])  # (n, H, W, 3)
            for result, values in zip(results, self._infer(outputs, batch, self._idle_session()), strict=True):
                result[indices] = values
        return results

    def _idle_session(self) -> Session:
        """The session that suits the load: `_alone` for one call alone, one thread for each of several."""
        return self._alone if self._running == 1 else self._single


def _check_image(image: np.ndarray, index: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"Image {index} is {image.dtype} {image.shape}: expected uint8 (height, width, 3).")
