"""Writes one MLflow model with three flavors: pytorch (pt2, no pickle), onnx, python_function over onnxruntime.

`mlflow.models.Model.log` takes it as `flavor` and calls `save_model`.
"""

import contextlib
import importlib.metadata
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcifar.errors import ReleaseError
from vitcifar.release.manifest import LOADER_MODULE, MANIFEST_FILE, ONNX_FILE, Manifest, write_manifest

if TYPE_CHECKING:
    from mlflow.models import Model
    from torch.export import ExportedProgram

CONDA_FILE, PYTHON_FILE = "conda.yaml", "python_env.yaml"
REQUIREMENTS = ("mlflow", "numpy", "onnx", "onnxruntime", "Pillow", "torch")


def save_model(
    path: str,
    mlflow_model: "Model",
    *,
    program: "ExportedProgram",
    staged: Path,
    release: Manifest,
    digests: list[str],
    **kwargs: Any,
) -> None:
    """Write the release into `path`: the pt2, the files of the folder `staged` (moved), MLmodel, release.json last.

    The digest of release.json is appended to `digests`. The pt2 accepts any number of images of any size, like the
    ONNX file.
    """
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape = (-1, -1, -1, 3)  # -1: mlflow.pytorch exports that axis as dynamic
    signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype(np.uint8), shape, "image")]))
    mlflow.pytorch.save_model(
        program.module(),
        path,
        mlflow_model=mlflow_model,
        serialization_format="pt2",
        signature=signature,
        input_example=np.zeros((2, 40, 48, 3), dtype=np.uint8),
        pip_requirements=requirements(),
    )
    folder = Path(path)
    for file in sorted(staged.iterdir()):
        shutil.move(file, folder / file.name)
    _write_mlmodel(mlflow_model, folder)
    digests.append(write_manifest(release, folder))


def _write_mlmodel(mlflow_model: "Model", folder: Path) -> None:
    """Write MLmodel: three flavors and no signature, since the python_function accepts files as well as arrays."""
    import mlflow.onnx
    import mlflow.pyfunc
    import onnx

    # With an example MLflow loads the model and rewrites MLmodel after release.json has recorded its hash.
    for name in ("input_example.json", "serving_input_example.json"):
        (folder / name).unlink(missing_ok=True)
    mlflow_model.saved_input_example_info = None  # type: ignore[assignment]
    mlflow_model.signature = None
    del mlflow_model.flavors["python_function"]
    mlflow.pyfunc.add_to_model(mlflow_model, loader_module=LOADER_MODULE, conda_env=CONDA_FILE, python_env=PYTHON_FILE)
    mlflow_model.add_flavor(
        mlflow.onnx.FLAVOR_NAME,
        onnx_version=onnx.__version__,
        data=ONNX_FILE,
        providers=["CPUExecutionProvider"],
        onnx_session_options=None,
        code=None,
    )
    mlflow_model.model_size_bytes = sum(
        os.path.getsize(file) for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST_FILE
    )
    mlflow_model.save(str(folder / "MLmodel"))


def requirements() -> list[str]:
    """Pinned requirements for loading the release, without torch's local version (+cpu), which is not on PyPI.

    Raises ReleaseError for a package without metadata, also one that the export needs.
    """
    versions = {name: _installed_version(name) for name in (*REQUIREMENTS, "onnxscript")}
    if missing := [name for name, version in versions.items() if not version]:
        raise ReleaseError(f"The installation of {', '.join(missing)} is incomplete: install it again with pip.")
    return [f"{name}=={versions[name].split('+')[0]}" for name in REQUIREMENTS]


def _installed_version(name: str) -> str:
    with contextlib.suppress(ImportError, OSError, KeyError):  # no metadata, or an empty folder of that name
        return importlib.metadata.version(name) or ""
    return ""
