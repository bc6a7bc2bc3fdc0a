"""What several tests share: toy ONNX files, pictures as bytes, and a registry with two published versions."""

import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Before torch is imported: the commands let other programs have the core, and two files of tests run at a time.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("OMP_NUM_THREADS", "1")

COLOURS = ("red", "green", "blue")
LONG = ("test_transfer", "test_again", "test_road")  # files that take minutes start first: the two workers end together


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


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


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of who may be promoted time a file often, and not for its time."""
    if latency := sys.modules.get("vitcifar.release.latency"):
        monkeypatch.setattr(latency, "REST_SECONDS", 0.0)


@pytest.fixture
def toy_onnx(tmp_path: Path) -> Path:
    """The ONNX file of a toy release that tells red, green and blue pictures apart."""
    return make_onnx(tmp_path / "toy.onnx")


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """`picture("red", size=(w, h), kind="PNG")` -> the bytes of a file."""
    return make_picture


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow server` on loopback; clients see artifacts through its proxy alone."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept")]
    command += ["--allowed-hosts", f"127.0.0.1:{port},localhost:{port}"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "log").read_text()
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module", params=["sqlite", "server"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty store of each kind in turn, connected to; a folder to work in."""
    from vitcifar import tracking

    folder = tmp_path_factory.mktemp("place")
    uri = f"sqlite:///{folder}/mlflow.db" if request.param == "sqlite" else request.getfixturevalue("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("VITCIFAR_CACHE", str(folder / "cache"))
        tracking.connect(uri)
        yield folder


def stored(registry: Any, number: int, place: Path) -> Path:
    """The folder in which the store really keeps a version's files."""
    location = registry.location(registry.show(number))
    if location.startswith("mlflow-artifacts:"):
        model = location.rsplit("/models/")[1].split("/")[0]
        return next(place.parent.glob(f"server*/kept/0/models/{model}/artifacts"))
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


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Two published versions (random weights, with a head that is not zero), made once. Use `registry` to open it."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        return publish_two(folder, patch)


def publish_two(folder: Path, patch: pytest.MonkeyPatch) -> Published:
    import mlflow
    import torch

    from vitcifar import tracking
    from vitcifar.config import resolve
    from vitcifar.data.sources import open_source
    from vitcifar.data.splits import make_splits
    from vitcifar.release.publish import publish
    from vitcifar.release.registry import Registry
    from vitcifar.training.network import build_network

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
    Registry("toy").promote(1, reason="the first")
    tracking.connect(uri)
    return Published(
        uri=uri, folder=folder, model_name="toy", splits=splits, networks=networks, config=config, run_id=run_id
    )


def settle(folder: Path, patch: pytest.MonkeyPatch) -> str:
    """Point MLflow at the store of a folder and our cache at a place beside it, until the patch is undone."""
    from vitcifar import tracking

    uri = f"sqlite:///{folder}/mlflow.db"
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    patch.setenv("VITCIFAR_CACHE", str(folder / "cache"))
    return tracking.connect(uri)


@pytest.fixture
def registry(published: Published, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The registry of `published`, connected, its champion back at version 1 afterwards."""
    from vitcifar.release.registry import Registry

    settle(published.folder, monkeypatch)
    opened = Registry(published.model_name)
    yield opened
    opened.client.set_registered_model_alias(published.model_name, "champion", "1")
