"""Opens the model of a release in the format that was proven to serve."""

import warnings
from typing import Any

from vitcifar.inference.openvino_session import obstacle
from vitcifar.inference.session import OnnxClassifier
from vitcifar.release.manifest import Manifest


def open_served(release: Manifest, **options: Any) -> OnnxClassifier:
    """The format that serves, opened with the `options` of `OnnxClassifier`. Raises ReleaseError."""
    return OnnxClassifier(release.onnx_path, openvino=openvino_precision(release), **options)


def openvino_precision(release: Manifest) -> str:
    """The precision in which OpenVINO runs a release on this machine; "" = onnxruntime runs what serves.

    Where OpenVINO cannot run a release that it serves, onnxruntime runs the same file in float, which every release has
    proven to predict as its network does; a warning says so.
    """
    if not release.openvino or not (why := obstacle(release.openvino)):
        return release.openvino
    warnings.warn(
        f"{release.name} was chosen to run with OpenVINO ({release.openvino}), but {why}. Now onnxruntime runs its "
        "float file, which predicts as its network does and may be slower.",
        stacklevel=3,
    )
    return ""
