"""What several tests share: toy ONNX files, pictures as bytes, and a registry with two published versions."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = ("red", "green", "blue")


def make_onnx(
    path: Path, class_names: Sequence[str] = COLOURS, *, release_id: str = "toy", temperature: float = 1.0
) -> Path:
    """A graph with the inputs and outputs of a real release whose logits are a picture's mean red, green, blue / 16."""
    import onnx
    from onnx import TensorProto, helper

    weights = np.zeros((3, len(class_names)), np.float32)
    weights[[0, 1, 2], [0, 1, 2]] = 1 / 16
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "sides"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Div", ["logits", "temperature"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["probabilities"], axis=1),
    ]
    constants = [
        helper.make_tensor("sides", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel().tolist()),
        helper.make_tensor("temperature", TensorProto.FLOAT, [], [temperature]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", len(class_names)])
            for name in ("logits", "probabilities")
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    properties = {"class_names": json.dumps(list(class_names)), "release_id": release_id, "image_size": "32"}
    onnx.helper.set_model_props(model, properties | {"temperature": repr(temperature)})
    path.write_bytes(model.SerializeToString())
    return path


def make_picture(
    colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (32, 32), kind: str = "PNG"
) -> bytes:
    """One picture of one colour, as the bytes of a file."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def toy_onnx(tmp_path: Path) -> Path:
    """The ONNX file of a toy release that tells red, green and blue pictures apart."""
    return make_onnx(tmp_path / "toy.onnx")


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """`picture("red", size=(w, h), kind="PNG")` -> the bytes of a file."""
    return make_picture
