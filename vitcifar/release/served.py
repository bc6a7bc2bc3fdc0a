"""Opens the model of a release in the format that was proven to serve, or its float file where that cannot run."""

import warnings
from pathlib import Path
from typing import Any

from vitcifar.inference.machine import saturates_int8
from vitcifar.inference.openvino_session import obstacle
from vitcifar.inference.session import OnnxClassifier
from vitcifar.release.manifest import INT8_FILE, ONNX_FILE, Manifest


def open_served(release: Manifest, **options: Any) -> OnnxClassifier:
    """The format that serves, opened with the `options` of `OnnxClassifier`. Raises ReleaseError."""
    path, openvino = served_file(release)
    return OnnxClassifier(path, openvino=openvino, **options)


def served_file(release: Manifest) -> tuple[Path, str]:
    """The file that serves on this machine, and the precision in which OpenVINO runs it; "" = onnxruntime does.

    Where the format that was chosen cannot run, or would not predict as it was proven to, onnxruntime runs the float
    file, which every release has proven to predict as its network does; a warning says so.
    """
    if why := _obstacle(release):
        warnings.warn(
            f"{release.name} {why}. Now onnxruntime runs its float file, which predicts as its network does and may be "
            "slower.",
            stacklevel=3,
        )
        return release.path(ONNX_FILE), ""
    return release.onnx_path, release.openvino


def int8_is_exact(release: Manifest) -> bool:
    """Whether this processor computes the products of the release's int8 model exactly."""
    return release.weight_bits <= 7 or not saturates_int8()


def _obstacle(release: Manifest) -> str:
    if release.openvino and (why := obstacle(release.openvino)):
        return f"was chosen to run with OpenVINO ({release.openvino}), but {why}"
    if release.serves == INT8_FILE and not int8_is_exact(release):
        return "was chosen to run in int8 with weights of 8 bits, whose products saturate on this processor (no VNNI)"
    return ""
