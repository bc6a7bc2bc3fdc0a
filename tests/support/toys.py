"""Toy ONNX models, images as bytes, and a registry with two published versions."""

import dataclasses
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

COLOURS = ("red", "green", "blue")


def make_onnx(
    path: Path,
    class_names: Sequence[str] = COLOURS,
    *,
    release_id: str = "toy",
    temperature: float = 1.0,
    embedding: bool = False,
) -> Path:
    """A graph with the inputs and outputs of a real release whose logits are an image's mean red, green, blue / 16.

    With an `embedding`, it is these means; releases of earlier versions of vitcifar have none.
    """
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
        *([helper.make_node("Identity", ["mean"], ["embedding"])] if embedding else []),
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
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, ["n", 3 if name == "embedding" else len(class_names)]
            )
            for name in ("logits", "probabilities", *(["embedding"] if embedding else []))
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    properties = {"class_names": json.dumps(list(class_names)), "release_id": release_id, "image_size": "32"}
    onnx.helper.set_model_props(model, properties | {"temperature": repr(temperature)})
    path.write_bytes(model.SerializeToString())
    return path


def make_image(
    colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (32, 32), kind: str = "PNG"
) -> bytes:
    """One image of one colour, as the bytes of a file."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def stored(registry: Any, number: int, workspace: Path) -> Path:
    """The folder in which the store really keeps a version's files."""
    location = registry.location(registry.show(number))
    if location.startswith("mlflow-artifacts:"):
        model = location.rsplit("/models/")[1].split("/")[0]
        return next(workspace.parent.glob(f"server*/kept/0/models/{model}/artifacts"))
    return Path(location.removeprefix("file://"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A registry of its own with two versions of a small network; version 1 is the champion."""

    uri: str
    folder: Path
    model_name: str
    splits: Any
    networks: dict[int, Any]
    config: Any
    run_id: str


def publish_two(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Publish two versions in a folder, and leave there what `read_published` reads."""
    import mlflow
    import torch
    from support.releases import publish

    from vitcifar import tracking
    from vitcifar.data.sources import open_source
    from vitcifar.data.splits import make_splits
    from vitcifar.model.network import build_network
    from vitcifar.presets import resolve
    from vitcifar.registry.aliases import move_alias
    from vitcifar.registry.registry import Registry

    uri = settle(folder, patch)
    config = resolve("digits", train_per_class=2, validation_per_class=2, test_per_class=2, model_name="toy")
    splits = make_splits(
        open_source("digits", folder), train_per_class=2, validation_per_class=2, test_per_class=2, seed=0
    )
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("toy", artifact_location=(folder / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    networks = {}
    for seed in (0, 1):
        network = build_network(dataclasses.replace(config, seed=seed), splits.class_names)
        torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(seed))
        number = publish(network, splits=splits, evaluation={"accuracy": 0.1}, config=config, run_id=run_id)
        networks[number] = network
    client.set_terminated(run_id)
    move_alias(Registry("toy"), "champion", 1, reason="the first")
    tracking.connect(uri)
    made = {"uri": uri, "folder": folder, "model_name": "toy", "splits": splits, "networks": networks}
    (folder / "published.pickle").write_bytes(pickle.dumps(Published(**made, config=config, run_id=run_id)))


def read_published(folder: Path) -> Published:
    """The registry that `publish_two` made in another folder, of which this is a copy."""
    made = pickle.loads((folder / "published.pickle").read_bytes())
    return dataclasses.replace(made, uri=f"sqlite:///{folder}/mlflow.db", folder=folder)


def settle(folder: Path, patch: pytest.MonkeyPatch) -> str:
    """Point MLflow at the store of a folder and our cache at a place beside it, until the patch is undone."""
    from vitcifar import tracking

    uri = f"sqlite:///{folder}/mlflow.db"
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    patch.setenv("VITCIFAR_CACHE", str(folder / "cache"))
    return tracking.connect(uri)
