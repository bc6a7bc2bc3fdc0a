"""Opens an ONNX file of a release with onnxruntime, and checks that it is one: its inputs, outputs and metadata."""

import contextlib
import json
from pathlib import Path

import onnxruntime

from vitcifar.errors import ReleaseError, reason_of
from vitcifar.inference.machine import return_free_memory

EMBEDDING = "embedding"  # the output that releases of earlier versions of vitcifar do not have


def size_of(model: Path | bytes) -> int:
    return len(model) if isinstance(model, bytes) else model.stat().st_size


def open_session(
    model: Path | bytes, name: str, num_threads: int, *, check_only: bool = False
) -> onnxruntime.InferenceSession:
    """Open a file to predict with it, or `check_only`: sooner, and in less memory. Raises ReleaseError."""
    options = onnxruntime.SessionOptions()
    if check_only:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
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
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no common class
        raise ReleaseError(
            f"{name} is not an ONNX file that can be opened ({reason_of_onnxruntime(error)}): pull the version again."
        ) from None
    return_free_memory()
    return session


def reason_of_onnxruntime(error: Exception) -> str:
    return reason_of(error).removeprefix("[ONNXRuntimeError] : ")


def check_graph(session: onnxruntime.InferenceSession, name: str) -> None:
    inputs = {entry.name: entry.type for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    if inputs != {"image": "tensor(uint8)"} or not {"logits", "probabilities"} <= set(outputs):
        raise ReleaseError(
            f"{name} is not an export of vitcifar: expected image (uint8) -> logits, probabilities; "
            f"got {', '.join(f'{key} ({kind})' for key, kind in inputs.items())} -> {', '.join(outputs)}."
        )


def embedding_size(session: onnxruntime.InferenceSession) -> int:
    shapes = {entry.name: entry.shape for entry in session.get_outputs()}
    size = shapes.get(EMBEDDING, [0])[-1]
    return size if isinstance(size, int) else 0


def read_class_names(metadata: dict[str, str], name: str) -> tuple[str, ...]:
    with contextlib.suppress(KeyError, ValueError):
        names = json.loads(metadata["class_names"])
        if isinstance(names, list) and {type(one) for one in names} == {str} and len(set(names)) == len(names):
            return tuple(names)
    raise ReleaseError(f"{name} is not an export of vitcifar: it has no class names.")
