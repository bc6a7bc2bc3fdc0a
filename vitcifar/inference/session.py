"""Opens the ONNX file of a release and answers images with it, on the CPU.

Letters of shapes: N images, H and W their sides in pixels, K classes.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from vitcifar.data.image import read_image
from vitcifar.errors import ImageError, ReleaseError

# Images of one size go through the graph together, up to so many and so many pixels: memory stays bounded.
MAX_BATCH = 32
MAX_BATCH_PIXELS = 4_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Where the time of one answer went, in milliseconds: decode the file, run the graph, everything together."""

    decode_ms: float
    inference_ms: float
    total_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image's prediction: the most likely class, every class's probability (largest first), and the release."""

    label: str
    probabilities: dict[str, float]
    release_id: str
    timing: Timing | None = None

    @property
    def probability(self) -> float:
        """The probability of the label."""
        return self.probabilities[self.label]

    def to_dict(self, model: str, version: int | None) -> dict[str, Any]:
        """What every entry point returns: label, probabilities, model, version, release_id and, if measured, timing."""
        fields: dict[str, Any] = {
            "label": self.label,
            "probabilities": self.probabilities,
            "model": model,
            "version": version,
            "release_id": self.release_id,
        }
        return fields if self.timing is None else {**fields, "timing": dataclasses.asdict(self.timing)}


class OnnxClassifier:
    """The ONNX file of a release, opened: graph `image` uint8 (N, H, W, 3) -> `logits` and `probabilities` (N, K).

    `num_threads` 0 takes as many as there are cores for this process. Any number of threads may ask it at once.
    Raises ReleaseError for a file that is broken or was not made by an export of ours.
    """

    def __init__(self, model: Path | bytes, *, num_threads: int = 0) -> None:
        self.name = "The model" if isinstance(model, bytes) else str(model)
        self.num_threads = num_threads or available_cores()
        self._session = _open(model, self.name, self.num_threads)
        said = self._session.get_modelmeta().custom_metadata_map
        _check_graph(self._session, self.name)
        self.class_names = _class_names(said, self.name)
        self.release_id = said.get("release_id", "")
        self.image_size = int(said.get("image_size", 0))
        self.temperature = float(said.get("temperature", 1.0))
        self.max_batch = min(MAX_BATCH, int(said.get("max_batch", MAX_BATCH)))

    def logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images, each uint8 (H, W, 3) of any size -> logits float32 (N, K), in the order given."""
        return self._run("logits", images)

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images, each uint8 (H, W, 3) of any size -> calibrated probabilities float32 (N, K)."""
        return self._run("probabilities", images)

    def predict(self, data: bytes | Path, name: str = "") -> Prediction:
        """Decode one image and classify it. Raises ImageError for what is not a usable image."""
        start = time.perf_counter()
        image = read_image(data, name)  # (H, W, 3)
        decoded = time.perf_counter()
        probabilities = self.probabilities([image])[0]  # (K,)
        inferred = time.perf_counter()
        prediction = self._prediction(probabilities)
        end = time.perf_counter()
        timing = Timing(
            decode_ms=1e3 * (decoded - start), inference_ms=1e3 * (inferred - decoded), total_ms=1e3 * (end - start)
        )
        return dataclasses.replace(prediction, timing=timing)

    def predict_images(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Classify images, each uint8 (H, W, 3) of any size, in order and without timing. Raises ImageError."""
        return [self._prediction(probabilities) for probabilities in self.probabilities(images)]

    def _prediction(self, probabilities: np.ndarray) -> Prediction:
        ranked = self.rank_classes(probabilities)
        return Prediction(label=next(iter(ranked)), probabilities=ranked, release_id=self.release_id)

    def rank_classes(self, probabilities: np.ndarray) -> dict[str, float]:
        """One image's probabilities (K,) by class name, the largest first."""
        order = np.argsort(-probabilities, kind="stable")
        return {self.class_names[index]: float(probabilities[index]) for index in order}

    def warm(self) -> None:
        """Run one empty image, so that the first real one finds everything allocated."""
        side = self.image_size or 32
        self.probabilities([np.zeros((side, side, 3), np.uint8)])

    def _ask(self, output: str, batch: np.ndarray) -> np.ndarray:
        try:
            return self._session.run([output], {"image": batch})[0]
        except Exception as error:  # onnxruntime's own errors share no class
            raise ReleaseError(f"{self.name} cannot answer ({_reason(error)}): choose another version.") from None

    def _run(self, output: str, images: Sequence[np.ndarray]) -> np.ndarray:
        result = np.empty((len(images), len(self.class_names)), np.float32)
        for indices in _batches(images, self.max_batch):
            batch = np.stack([images[index] for index in indices])  # (n, H, W, 3)
            values = self._ask(output, batch)
            if values.shape != result[indices].shape:
                raise ReleaseError(
                    f"{self.name} gives {values.shape[1:]} {output} for {len(self.class_names)} classes."
                )
            result[indices] = values
        return result


def _batches(images: Sequence[np.ndarray], max_batch: int) -> list[list[int]]:
    """The images' indices, grouped by size and cut into batches that fit the bounds above."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(f"Image {index} is {image.dtype} {image.shape}: expected uint8 (height, width, 3).")
        by_size.setdefault(image.shape, []).append(index)
    batches = []
    for (height, width, _), indices in by_size.items():
        length = max(1, min(max_batch, MAX_BATCH_PIXELS // (height * width)))
        batches += [indices[start : start + length] for start in range(0, len(indices), length)]
    return batches


def _open(model: Path | bytes, name: str, num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # After an answer the threads would spin for 45 ms, on cores that whoever comes next needs. Answers take as long
    # without (ViT-B/16 in int8, 2 cores, onnxruntime 1.32: 57.5 and 57.5 ms).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors alone; they reach the user as the sentence below
    if isinstance(model, bytes):
        # Weights kept in other files would be looked for where the program happens to run: name a place without any.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/nowhere")
    elif not model.is_file():
        raise ReleaseError(f"There is no file {model}: pull the version again.")
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own errors share no class
        raise ReleaseError(
            f"{name} is not an ONNX file that can be opened ({_reason(error)}): pull the version again."
        ) from None


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].removeprefix("[ONNXRuntimeError] : ")


def _check_graph(session: onnxruntime.InferenceSession, name: str) -> None:
    inputs = {entry.name: entry.type for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    if inputs != {"image": "tensor(uint8)"} or not {"logits", "probabilities"} <= set(outputs):
        raise ReleaseError(
            f"{name} is not an export of vitcifar: expected image (uint8) -> logits, probabilities; "
            f"got {', '.join(f'{key} ({kind})' for key, kind in inputs.items())} -> {', '.join(outputs)}."
        )


def _class_names(said: dict[str, Any], name: str) -> tuple[str, ...]:
    try:
        names = json.loads(said["class_names"])
        if isinstance(names, list) and {type(one) for one in names} == {str} and len(set(names)) == len(names):
            return tuple(names)
    except (KeyError, ValueError):
        pass
    raise ReleaseError(f"{name} is not an export of vitcifar: it does not say its class names.")


CPUS = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Physical cores among the CPUs that this process may run on, cut to the container's quota; at least 1."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # only Linux tells
        return max(1, (os.cpu_count() or 2) // 2)
    cores = len({_siblings(cpu) for cpu in cpus})
    return max(1, min(cores, _quota()))


def _siblings(cpu: int) -> str:
    """The hyper-threads of the core that a CPU belongs to, as the kernel lists them: equal text, same core."""
    try:
        return (CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """The container's share in whole cores, rounded up; a large number without one."""
    try:
        quota, period = QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return 1 << 16
