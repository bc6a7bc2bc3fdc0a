"""Runs an ONNX file of a release with OpenVINO on the CPU, in float32 or bfloat16. OpenVINO is an optional package."""

import contextlib
import importlib.util
import io
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from vitcifar.errors import ReleaseError, reason_of
from vitcifar.inference.machine import available_cores

if TYPE_CHECKING:
    import openvino

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # and what OpenVINO calls them
INSTALL = "pip install 'vitcifar[openvino]'"


def is_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def fastest_precision() -> str:
    """bf16 where OpenVINO says that this processor computes in it, else fp32; "" without OpenVINO."""
    if not is_installed():
        return ""
    return "bf16" if "BF16" in _import().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"


def obstacle(precision: str) -> str:
    """Why this machine cannot run a release that was checked with OpenVINO in a precision, and what to do; "" if it
    can."""
    if precision not in PRECISIONS:
        return f"this vitcifar does not know its precision {precision!r}: update vitcifar"
    if not is_installed():
        return f"OpenVINO is not installed: type {INSTALL}"
    if precision == "bf16" and fastest_precision() != "bf16":
        return "this processor does not compute in bfloat16"
    return ""


class OpenVinoSession:
    """An open model, which `run` predicts with as a session of onnxruntime does, but one image at a time.

    With `num_threads` 1 several callers are answered at the same time, on one thread each; else one after the other, on
    `num_threads`. `model` is a path, or the content of a file, that onnxruntime has opened before: OpenVINO would read
    weights from other files. Raises ReleaseError if OpenVINO cannot run it.
    """

    def __init__(self, model: Path | bytes, name: str, precision: str, num_threads: int) -> None:
        num_streams = available_cores() if num_threads == 1 else 1
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": max(num_threads, num_streams),
            "NUM_STREAMS": num_streams,
            "ENABLE_CPU_PINNING": False,  # other processes need the cores too
        }
        try:
            core = _import().Core()
            read = core.read_model(io.BytesIO(model) if isinstance(model, bytes) else model)
            _antialias(read)
            read.reshape({"image": [1, -1, -1, 3]})
            self._compiled = core.compile_model(read, "CPU", settings)
        except RuntimeError as error:
            raise ReleaseError(f"OpenVINO cannot open {name} ({_reason(error)}): choose another version.") from None
        self._threads = threading.local()  # a request serves one caller at a time

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs for a batch of images uint8 (N, H, W, 3), computed one image after the other."""
        if not hasattr(self._threads, "request"):
            self._threads.request = self._compiled.create_infer_request()
        rows: list[list[np.ndarray]] = []
        for image in inputs["image"]:
            self._threads.request.infer({"image": np.ascontiguousarray(image[None])})
            rows.append([self._threads.request.get_tensor(name).data.copy() for name in outputs])
        return [np.concatenate(arrays) for arrays in zip(*rows, strict=True)]


def _antialias(model: "openvino.Model") -> None:
    """Make the network's resize the one that it was exported with: OpenVINO ignores that ONNX's is antialiased, and
    its bilinear_pillow is the same computation."""
    from openvino import opset11

    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes()["antialias"]:
            axes = np.array([2, 3])  # of pixels (N, 3, H, W)
            sizes = opset11.gather(node.input_value(1), axes, np.array(0))
            resized = opset11.interpolate(node.input_value(0), sizes, "bilinear_pillow", "sizes", axes=axes)
            node.output(0).replace(resized.output(0))
    model.validate_nodes_and_infer_types()


def _import() -> ModuleType:
    """OpenVINO without its model converter, which would take half of the time and send a message over the network."""
    with _absent("openvino.tools.ovc") if "openvino" not in sys.modules else contextlib.nullcontext():
        return importlib.import_module("openvino")


@contextlib.contextmanager
def _absent(name: str) -> Iterator[None]:
    sys.modules[name] = None  # type: ignore[assignment]  # makes its import an ImportError, which OpenVINO expects
    try:
        yield
    finally:
        del sys.modules[name]


def _reason(error: Exception) -> str:
    """OpenVINO's message without the places in its own sources: the last line that says something."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(("Exception", "Check"))]
    return lines[-1].strip("- ") if lines else reason_of(error)
