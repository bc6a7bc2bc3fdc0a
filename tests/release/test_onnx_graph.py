"""The hand-written ONNX graph: equal to the network in float, close to it in int8, independent of the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime import InferenceSession
from support.exports import random_images, run_onnx

from vitcifar.config import TrainConfig
from vitcifar.inference.session import OnnxClassifier
from vitcifar.model.network import build_network
from vitcifar.model.predict import predict_logits
from vitcifar.release.export import OPSET
from vitcifar.release.onnx_graph import MICROSOFT, GraphBuilder, build_graph, save_graph, to_proto
from vitcifar.release.quantize import activation_ranges


@pytest.mark.parametrize("arch", ["vit_tiny", "vit_b_32"])
def test_the_float_graph_equals_the_network(arch: str, tmp_path: Path) -> None:
    size = 32 if arch == "vit_tiny" else 64
    network = build_network(TrainConfig(arch=arch, weights="none", image_size=size), ("a", "b", "c"))
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    network.temperature.fill_(2.0)
    path = tmp_path / "float.onnx"
    onnx.save(to_proto(build_graph(network, int8=False), network, class_names=("a", "b", "c"), release_id="x"), path)
    for shape in [(1, 32, 32), (3, 40, 50), (2, 300, 200), (2, 7, 9)]:
        images = random_images(*shape)
        logits, probabilities = run_onnx(path, images)
        np.testing.assert_allclose(logits, predict_logits(network, images), atol=2e-4)
        np.testing.assert_allclose(probabilities, torch.softmax(torch.tensor(logits) / 2, -1).numpy(), atol=1e-5)


@pytest.mark.parametrize(("size", "count"), [(32, 3), (64, 12), (64, 50)])
@pytest.mark.parametrize("schedule", ["constant", "halving"])
def test_the_graph_merges_the_same_tokens_as_the_network(size: int, count: int, schedule: str, tmp_path: Path) -> None:
    tokens = {"image_size": size, "token_merging": count, "merging_schedule": schedule}
    config = TrainConfig(arch="vit_tiny", weights="none", **tokens)
    network, path = build_network(config, ("a", "b", "c")), tmp_path / "merging.onnx"
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    images = random_images(9, 40, 50)
    expected = predict_logits(network, images)
    save_graph(network, path, class_names=("a", "b", "c"), release_id="x")
    classifier = OnnxClassifier(path)
    np.testing.assert_allclose(classifier.logits(images), expected, atol=2e-4)
    alone = np.concatenate([classifier.logits(images[index : index + 1]) for index in range(len(images))])
    np.testing.assert_allclose(alone, expected, atol=2e-4)
    save_graph(network, path, class_names=("a", "b", "c"), release_id="x", int8=True)
    assert np.abs(OnnxClassifier(path).logits(images) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.fixture(scope="module", params=["dynamic", "static"])
def int8_file(request: pytest.FixtureRequest, published: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1's network in int8."""
    network, splits = published.networks[1], published.splits
    ranges = activation_ranges(network, splits.train) if request.param == "static" else None
    graph = build_graph(network, int8=True, ranges=ranges)
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    onnx.save(to_proto(graph, network, class_names=splits.class_names, release_id="x"), path)
    return path


def test_the_int8_graph_is_close_to_the_network(published: Any, int8_file: Path) -> None:
    images = np.stack(list(published.splits.test.images))
    expected, (actual, _) = predict_logits(published.networks[1], images), run_onnx(int8_file, images)
    assert np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()
    assert OnnxClassifier(int8_file).release_id == "x"


@pytest.mark.parametrize("ranges", [None, {"layer": (0.0, 1.0)}])
def test_the_largest_products_of_int8_are_exact_on_this_processor(ranges: Any) -> None:
    """Without the VNNI instructions, products with weights of 8 bits saturate: the sum was half of this one."""
    graph = GraphBuilder(int8=True, ranges=ranges)
    output = graph.linear("x", "layer", np.ones((16, 64), np.float32), np.zeros(16, np.float32))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", output)]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "one_layer", values[:1], values[1:], list(graph.constants.values())),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=10,
    )
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"x": np.ones((1, 4, 64), np.float32)})
    np.testing.assert_allclose(sums, 64.0, rtol=1e-5)


def test_an_int8_prediction_does_not_depend_on_the_batch(published: Any, int8_file: Path) -> None:
    classifier, images = OnnxClassifier(int8_file), list(published.splits.test.images)
    alone = np.concatenate([classifier.logits([image]) for image in images])
    np.testing.assert_allclose(classifier.logits(images), alone, atol=1e-5)
