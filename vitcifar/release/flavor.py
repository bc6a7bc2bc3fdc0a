"""Writes one MLflow model with three flavors: pytorch (pt2, no pickle), onnx, python_function over onnxruntime.

`mlflow.models.Model.log` takes it as `flavor` and calls `save_model`.
"""

import base64
import io
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vitcifar.release.export import exported_already
from vitcifar.release.manifest import LOADER_MODULE, MANIFEST_FILE, ONNX_FILE, Manifest, write_manifest
from vitcifar.release.serving_environment import SERVING, add_wheel, check_installed, lock
from vitcifar.uris import check_space

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature
    from torch.export import ExportedProgram

CONDA_FILE, PYTHON_FILE = "conda.yaml", "python_env.yaml"
EXAMPLE_SIDE = 64  # pixels of the longer side, at most: the example is shown as text
OUTPUT = {"output": "prediction"}  # or "label": MLflow can load the model with another `model_config`
EXPORTING = ("onnx", "onnxscript", "torch")  # packages that make a release


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
    ONNX file. The wheel of vitcifar lies among the files, where MLflow finds it when it makes an environment.
    """
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape = (-1, -1, -1, 3)  # -1: mlflow.pytorch exports that axis as dynamic
    signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype(np.uint8), shape, "image")]))
    weights = sum(weight.nbytes for weight in program.state_dict.values())
    check_space(Path(path).parent, weights + 2**20)
    with exported_already(program):
        mlflow.pytorch.save_model(
            program.module(),
            path,
            mlflow_model=mlflow_model,
            serialization_format="pt2",
            signature=signature,
            input_example=np.zeros((2, 40, 48, 3), dtype=np.uint8),
            pip_requirements=add_wheel(requirements(openvino=bool(release.openvino)), staged),
        )
    folder = Path(path)
    for file in sorted(staged.iterdir()):
        shutil.move(file, folder / file.name)
    _write_mlmodel(mlflow_model, folder)
    digests.append(write_manifest(release, folder))


def _write_mlmodel(mlflow_model: "Model", folder: Path) -> None:
    """Write MLmodel: three flavors, with the signature and the input example of the python_function."""
    import mlflow.onnx
    import mlflow.pyfunc
    import onnx

    mlflow_model.saved_input_example_info = _write_example(folder)
    mlflow_model.signature = signature()
    del mlflow_model.flavors["python_function"]
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module=LOADER_MODULE,
        conda_env=CONDA_FILE,
        python_env=PYTHON_FILE,
        model_config=dict(OUTPUT),
    )
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
    place, mlflow_model.artifact_path = mlflow_model.artifact_path, None  # a path of this machine
    mlflow_model.save(str(folder / "MLmodel"))
    mlflow_model.artifact_path = place


def signature() -> "ModelSignature":
    """What the python_function takes and what it returns: for each image a row of the column `image`, and a prediction.

    The column is text, since MLflow passes text and bytes in it unchanged; in a column of type binary, MLflow's server
    decodes base64 in tables, where it skips characters that are not of its alphabet, and not in other requests.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(Map(DataType.double), "probabilities"),
                ColSpec(DataType.string, "model"),
                ColSpec(DataType.long, "version"),
                ColSpec(DataType.string, "release_id"),
                ColSpec(DataType.boolean, "confident", required=False),
            ]
        ),
    )


def _write_example(folder: Path) -> dict[str, str]:
    """Write an image as base64 in the column `image`, as MLflow's pages and `mlflow.models.predict` read it."""
    path = next(iter(sorted((folder / "examples").glob("*.png"))))
    with Image.open(path) as image:
        image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    table = {"columns": ["image"], "data": [[base64.b64encode(buffer.getvalue()).decode()]]}
    (folder / "input_example.json").write_text(json.dumps(table), encoding="utf-8")
    (folder / "serving_input_example.json").write_text(json.dumps({"dataframe_split": table}), encoding="utf-8")
    return {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "dataframe",
        "pandas_orient": "split",
    }


def requirements(*, openvino: bool = False) -> list[str]:
    """The packages that serve the release, pinned, with `openvino` that one too. Raises ReleaseError for one without
    metadata, or of the export."""
    check_installed(EXPORTING)
    return lock([*SERVING, "openvino"] if openvino else SERVING)
