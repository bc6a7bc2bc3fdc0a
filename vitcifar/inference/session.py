"""One ONNX model on the CPU: images in, calibrated predictions and their timing out.

Shapes: N images, H and W their height and width in pixels, K classes.
"""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from vitcifar.data.dataset import group_by_size
from vitcifar.data.image import read_image
from vitcifar.errors import ImageError, ReleaseError, reason_of
from vitcifar.inference.image_statistics import ImageStatistics
from vitcifar.inference.machine import available_cores

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


class OnnxClassifier:
    """An open ONNX model of a release: `image` uint8 (N, H, W, 3) -> `logits` and `probabilities` float32 (N, K).

    With the `statistics` of its training images, the prediction of a file says whether it is out of distribution.
    `num_threads` 0 uses every core available to this process. Several threads may call it at the same time. With
    `concurrent`, predictions at the same time use one thread each, and one alone every core, unless `warm` finds a
    small network faster with one thread; files above `MAX_TWICE` keep one session. Raises ReleaseError for a file that
    is broken, is not an export of vitcifar or refers to other files.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        num_threads: int = 0,
        concurrent: bool = False,
        statistics: ImageStatistics | None = None,
    ) -> None:
        self.statistics = statistics
        self.name = "The model" if isinstance(model, bytes) else str(model)
        self.num_threads = num_threads or available_cores()
        self._session = self._single = _open(model, self.name, self.num_threads)
        # onnxruntime packs the weights again in each session, and shares packed ones in C only: docs/decisions.md.
        if concurrent and self.num_threads > 1 and _size(model) <= MAX_TWICE:
            self._single = _open(model, self.name, 1)
        self._alone = self._session
        self._running, self._lock = 0, threading.Lock()
        metadata = self._session.get_modelmeta().custom_metadata_map
        _check_graph(self._session, self.name)
        self.class_names = _class_names(metadata, self.name)
        self.release_id = metadata.get("release_id", "")
        self.image_size = int(metadata.get("image_size", 0))
        self.temperature = float(metadata.get("temperature", 1.0))
        self.max_batch = min(MAX_BATCH, int(metadata.get("max_batch", MAX_BATCH)))

    def logits(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Logits float32 (N, K) of images, each uint8 (H, W, 3) of any size, in the same order. Raises ImageError."""
        with self._counted():
            return self._run("logits", images)

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Calibrated probabilities float32 (N, K) of images, as for `logits`."""
        with self._counted():
            return self._run("probabilities", images)

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
            probabilities = self._run("probabilities", [image])[0]  # (K,)
        inferred = time.perf_counter()
        score = self.statistics.relative_distance(image) if self.statistics and with_ood else None
        prediction = self._prediction(probabilities, ood_score=score)
        end = time.perf_counter()
        timing = Timing(
            decode_ms=1e3 * (decoded - start), inference_ms=1e3 * (inferred - decoded), total_ms=1e3 * (end - start)
        )
        return dataclasses.replace(prediction, timing=timing)

    def predict_images(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Classify images, each uint8 (H, W, 3) of any size, in order and without timing. Raises ImageError."""
        return [self._prediction(probabilities) for probabilities in self.probabilities(images)]

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

    def _milliseconds(self, session: onnxruntime.InferenceSession) -> float:
        """The median of a few predictions, with pauses as between requests; a large network runs once."""
        side, times = self.image_size or 32, list[float]()
        while len(times) < 8 and (not times or times[-1] < 10 * SMALL_MS):
            time.sleep(1e-3)
            start = time.perf_counter()
            self._infer("probabilities", np.zeros((1, side, side, 3), np.uint8), session)
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

    def _infer(self, output: str, batch: np.ndarray, session: onnxruntime.InferenceSession) -> np.ndarray:
        try:
            values = np.asarray(session.run([output], {"image": batch})[0], np.float32)
        except Exception as error:  # onnxruntime's errors have no common class
            raise ReleaseError(f"{self.name} failed to run ({_reason(error)}): choose another version.") from None
        if values.shape != (expected := (len(batch), len(self.class_names))):
            raise ReleaseError(
                f"{self.name} returns {output} of shape {values.shape}, expected {expected}: choose another version."
            )
        return values

    def _run(self, output: str, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        if len(images) == 1:  # a request: the rest is for many
            _check_image(images[0], 0)
            return self._infer(output, images[0][None], self._idle_session())
        starts = range(0, max(1, len(images)), MAX_DECODED)
        return np.concatenate([self._run_some(output, images[s : s + MAX_DECODED], s) for s in starts])

    def _run_some(self, output: str, images: np.ndarray | Sequence[np.ndarray], first: int) -> np.ndarray:
        for index, image in enumerate(images, first):
            _check_image(image, index)
        result = np.empty((len(images), len(self.class_names)), np.float32)
        for indices in group_by_size(images, self.max_batch, max_pixels=MAX_BATCH_PIXELS):
            batch = np.stack([images[index] for index in indices])  # (n, H, W, 3)
            result[indices] = self._infer(output, batch, self._idle_session())
        return result

    def _idle_session(self) -> onnxruntime.InferenceSession:
        """The session that suits the load: `_alone` for one call alone, one thread for each of several."""
        return self._alone if self._running == 1 else self._single


def _check_image(image: np.ndarray, index: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"Image {index} is {image.dtype} {image.shape}: expected uint8 (height, width, 3).")


def _size(model: Path | bytes) -> int:
    return len(model) if isinstance(model, bytes) else model.stat().st_size


def _open(model: Path | bytes, name: str, num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # Otherwise the threads spin for 45 ms after each run, on cores that other processes need. The latency is the same
    # (ViT-B/16 int8, 2 cores, onnxruntime 1.32: 57.5 ms with and without).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # External data would be read from there. Nothing can exist below a device file: onnxruntime rejects such models.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null/none")
    options.log_severity_level = 3  # errors only; ReleaseError reports them
    if isinstance(model, Path) and not model.is_file():
        raise ReleaseError(f"There is no file {model}: pull the version again.")
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no common class
        raise ReleaseError(
            f"{name} is not an ONNX file that can be opened ({_reason(error)}): pull the version again."
        ) from None


def _reason(error: Exception) -> str:
    return reason_of(error).removeprefix("[ONNXRuntimeError] : ")


def _check_graph(session: onnxruntime.InferenceSession, name: str) -> None:
    inputs = {entry.name: entry.type for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    if inputs != {"image": "tensor(uint8)"} or not {"logits", "probabilities"} <= set(outputs):
        raise ReleaseError(
            f"{name} is not an export of vitcifar: expected image (uint8) -> logits, probabilities; "
            f"got {', '.join(f'{key} ({kind})' for key, kind in inputs.items())} -> {', '.join(outputs)}."
        )


def _class_names(metadata: dict[str, str], name: str) -> tuple[str, ...]:
    with contextlib.suppress(KeyError, ValueError):
        names = json.loads(metadata["class_names"])
        if isinstance(names, list) and {type(one) for one in names} == {str} and len(set(names)) == len(names):
            return tuple(names)
    raise ReleaseError(f"{name} is not an export of vitcifar: it has no class names.")
