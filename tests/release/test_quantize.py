"""The fast forms of a network: the float one answers as the network does, the int8 ones must earn their place."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from vitcifar.config import TrainConfig
from vitcifar.errors import ReleaseError
from vitcifar.evaluation.metrics import evaluate
from vitcifar.inference.session import OnnxClassifier
from vitcifar.model.network import build_network
from vitcifar.registry.benchmark import benchmark, recorded_tables
from vitcifar.registry.card import model_card
from vitcifar.registry.gates import Policy, check_gates
from vitcifar.registry.registry import Registry, publish
from vitcifar.release import latency
from vitcifar.release import quantize as judging
from vitcifar.release.export import OPSET, export_onnx, save
from vitcifar.release.latency import LatencyTable, Machine, compare_tables, this_machine, time_in_turns
from vitcifar.release.load import open_network
from vitcifar.release.manifest import check_no_external_data
from vitcifar.release.onnx_graph import build_graph, to_proto
from vitcifar.release.parity import network_logits
from vitcifar.release.quantize import Candidate, activation_ranges, quantize

SIZES = [(1, 32, 32), (3, 40, 50), (2, 300, 200), (2, 7, 9)]


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


def dataset(size: tuple[int, int, int]) -> np.ndarray:
    number, height, width = size
    return np.random.default_rng(height).integers(0, 256, (number, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("arch", ["vit_tiny", "vit_b_32"])
def test_the_fast_graph_in_float_answers_as_the_network(arch: str, tmp_path: Path) -> None:
    size = 32 if arch == "vit_tiny" else 64
    network = build_network(TrainConfig(arch=arch, weights="none", image_size=size), ("a", "b", "c"))
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    network.temperature.fill_(2.0)
    proto = to_proto(build_graph(network, int8=False), network, class_names=("a", "b", "c"), release_id="x")
    save(proto, tmp_path / "fast.onnx")
    for shape in SIZES:
        images = dataset(shape)
        np.testing.assert_allclose(run(tmp_path / "fast.onnx", images), network_logits(network, images), atol=2e-4)
    classifier = OnnxClassifier(tmp_path / "fast.onnx")
    logits, probabilities = classifier.logits(list(images)), classifier.probabilities(list(images))
    np.testing.assert_allclose(probabilities, torch.softmax(torch.tensor(logits) / 2, -1).numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def network(published: Any) -> Any:
    return published.networks[1]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_an_int8_form_is_close_small_and_whole(published: Any, network: Any, tmp_path: Path, kind: str) -> None:
    ranges = activation_ranges(network, published.splits.train) if kind == "static" else None
    names = published.splits.class_names
    graph = build_graph(network, int8=True, ranges=ranges)
    save(to_proto(graph, network, class_names=names, release_id="x"), tmp_path / "int8.onnx")
    check_no_external_data(tmp_path / "int8.onnx")
    images = published.splits.test.images
    expected, actual = network_logits(network, images), run(tmp_path / "int8.onnx", np.stack(list(images)))
    assert np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()
    assert OnnxClassifier(tmp_path / "int8.onnx").release_id == "x"


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_an_int8_answer_does_not_depend_on_the_pictures_beside_it(
    published: Any, network: Any, tmp_path: Path, kind: str
) -> None:
    ranges = activation_ranges(network, published.splits.train) if kind == "static" else None
    graph = build_graph(network, int8=True, ranges=ranges)
    proto = to_proto(graph, network, class_names=published.splits.class_names, release_id="x")
    save(proto, tmp_path / "int8.onnx")
    classifier, images = OnnxClassifier(tmp_path / "int8.onnx"), list(published.splits.test.images)
    together = classifier.logits(images)
    alone = np.concatenate([classifier.logits([image]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_ranges_cover_every_linear_layer(published: Any, network: Any) -> None:
    ranges = activation_ranges(network, published.splits.train)
    assert len(ranges) == 4 * len(network.blocks) + 1  # query and the rest apart in the last block
    assert all(low <= 0 < high for low, high in ranges.values())


@pytest.fixture(scope="module")
def float_file(published: Any, network: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    export_onnx(network, path, class_names=published.splits.class_names, release_id="x")
    return path.read_bytes()


Consider = Callable[[], list[Candidate]]


@pytest.fixture
def consider(published: Any, network: Any, float_file: bytes, tmp_path: Path) -> Consider:
    """Judge the int8 forms beside the float file in `tmp_path`."""
    (tmp_path / "model.onnx").write_bytes(float_file)
    labels = {"class_names": published.splits.class_names, "release_id": "x"}
    return lambda: quantize(network, tmp_path / "model.onnx", published.splits, **labels)


def test_the_faster_of_two_good_forms_is_kept(
    published: Any, consider: Consider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "MIN_AGREEMENT", 0.0)
    times = iter([[2.0, 9.0], [1.0, 9.0]])
    monkeypatch.setattr(judging, "onnx_p95", lambda paths: next(times))
    dynamic, static = consider()
    assert (dynamic.accepted, static.accepted) == (False, True)
    assert "the static form is faster" in dynamic.reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.int8.onnx", "model.onnx"]


def test_a_slower_form_is_not_kept_and_the_evidence_is(
    published: Any, consider: Consider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "MIN_AGREEMENT", 0.0)
    monkeypatch.setattr(judging, "onnx_p95", lambda paths: [9.0, 2.0])
    found = consider()
    assert [candidate.accepted for candidate in found] == [False, False]
    assert found[0].reason == "it is not faster: 9.0 ms against 2.0 ms at the 95th percentile"
    assert found[0].file_bytes > 0
    json.dumps([candidate.to_dict() for candidate in found])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_form_that_answers_differently_is_not_kept(
    published: Any, consider: Consider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "onnx_p95", lambda paths: [1.0, 9.0])
    real = judging.build_graph

    def draw_another(network: Any, *, int8: bool, ranges: Any = None) -> Any:
        return real(published.networks[2] if int8 else network, int8=int8, ranges=ranges)

    monkeypatch.setattr(judging, "build_graph", draw_another)
    found = consider()
    assert all("it agrees with the float file on" in candidate.reason for candidate in found)


def test_a_network_without_a_fast_form_serves_in_float(
    published: Any, consider: Consider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise ReleaseError("There is no fast form of a network with Tanh: it serves in float.")

    monkeypatch.setattr(judging, "build_graph", none)
    assert {candidate.reason for candidate in consider()} == {
        "There is no fast form of a network with Tanh: it serves in float."
    }


def test_a_release_that_serves_in_int8_is_proven_in_int8(
    registry: Any, published: Any, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "MIN_AGREEMENT", 0.0)
    times = iter([[1.0, 9.0], [2.0, 9.0]])
    monkeypatch.setattr(judging, "onnx_p95", lambda paths: next(times))
    test = published.splits.test
    score = evaluate(network_logits(network, list(test.images)), test.labels, test.class_names, fingerprint="f" * 64)
    number = publish(
        network,
        splits=published.splits,
        evaluation=score.to_dict(),
        config=dataclasses.replace(published.config, model_name="eight"),
        run_id=published.run_id,
        int8=True,
    )
    eight = Registry("eight")
    release, version = eight.pull(number), eight.show(number)
    assert release.serves == "model.int8.onnx"
    assert [found["accepted"] for found in release.checks["int8"].values()] == [True, False]
    answers = OnnxClassifier(release.onnx_path).logits(list(test.images))
    served = release.checks["served"]
    assert served["evaluation"]["predictions"] == answers.argmax(axis=1).tolist()
    assert served["agreement"] == (answers.argmax(axis=1) == score.predictions).mean()
    assert (served["num_edge_cases"], served["evaluation"]["fingerprint"]) == (18, "f" * 64)
    assert version.test_accuracy == (answers.argmax(axis=1) == test.labels).mean()
    gates = check_gates(eight, number, "champion", Policy())
    assert next(gate for gate in gates if gate.name == "accuracy").value == version.test_accuracy
    assert "model.int8.onnx serves: it agrees with the network on" in model_card(version, release)


def test_the_network_of_a_release_is_rebuilt_with_its_weights(registry: Any, published: Any) -> None:
    rebuilt = open_network(registry.pull(1, pytorch=True))
    expected = published.networks[1].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in rebuilt.state_dict().items())


def test_the_latency_of_every_form_is_kept_on_the_version(registry: Any, published: Any) -> None:
    first = benchmark(registry, 2, dataset=published.splits.test, threads=(1,), num_runs=3)
    assert [row.format for row in first.table.rows] == ["torch", "pt2", "onnx-fp32"]
    for row in first.table.rows:
        assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms
        assert row.cold_ms > 0
        assert row.accuracy == first.table.rows[0].accuracy
    assert first.changes == ()
    assert recorded_tables(registry, 2) == {this_machine().fingerprint: first.table}
    second = benchmark(registry, 2, threads=(1,), num_runs=3)
    assert [change.format for change in second.changes] == ["torch", "pt2", "onnx-fp32"]
    wider = benchmark(registry, 2, threads=(2,), num_runs=3)
    (kept,) = recorded_tables(registry, 2).values()
    assert kept.rows == (*second.table.rows, *wider.table.rows)  # what was not measured again is still there
    card = model_card(registry.show(2), registry.pull(2))
    assert "## Latency, one image at a time" in card
    assert f"| onnx-fp32 | 2 | {kept.rows[-1].file_bytes / 1e6:.1f} |" in card


def test_only_equal_machines_are_compared() -> None:
    here = this_machine()
    elsewhere: Machine = dataclasses.replace(here, num_cores=here.num_cores + 1)
    tables = [LatencyTable(machine=machine, image_size=32, num_runs=1, rows=()) for machine in (here, elsewhere)]
    assert compare_tables(tables[0], tables[0]) == []
    with pytest.raises(ReleaseError, match="only equal machines are compared"):
        compare_tables(*tables)
    assert LatencyTable.from_json(tables[1].to_json()) == tables[1]


def test_forms_take_turns() -> None:
    asked: list[str] = []
    times = time_in_turns({"a": lambda: asked.append("a"), "b": lambda: asked.append("b")}, num_runs=7)
    first, rest = "a" * 6 + "b" * 6, "aaabbb"  # each turn opens with an answer that is not timed
    assert "".join(asked) == first + rest
    assert {name: values.shape for name, values in times.items()} == {"a": (7,), "b": (7,)}


def one_product() -> bytes:
    """x (256, 512) times a square of ones, as an ONNX model."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "ones"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [256, 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [256, 512])],
        [numpy_helper.from_array(np.ones((512, 512), np.float32), "ones")],
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def test_a_form_is_timed_while_no_thread_of_another_one_spins(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime as it comes keeps a core busy after an answer; the next form must not have to share it."""
    monkeypatch.setattr(latency, "REST_SECONDS", 0.5)  # tests run two at a time: spinning lasts longer
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(one_product(), session_options, providers=["CPUExecutionProvider"])
    x = np.ones((256, 512), np.float32)
    spent: list[float] = []

    def look() -> None:
        start = time.process_time()
        time.sleep(0.06)
        spent.append(time.process_time() - start)

    def spins() -> None:
        session.run(None, {"x": x})

    spins()
    look()
    assert spent.pop() > 0.015, "this onnxruntime does not spin: REST_SECONDS can go"
    time_in_turns({"spins": spins, "looks": look}, num_runs=3)
    assert max(spent) < 0.015
