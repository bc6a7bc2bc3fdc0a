"""int8 quantization: a candidate is accepted only if it agrees with the float file, is as accurate and is faster."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.releases import publish

from vitcifar.evaluation.metrics import evaluate
from vitcifar.inference.machine import saturates_int8
from vitcifar.inference.session import OnnxClassifier
from vitcifar.model.network import build_network
from vitcifar.model.predict import predict_logits
from vitcifar.registry import gates
from vitcifar.registry.card import model_card
from vitcifar.registry.registry import Registry
from vitcifar.release import quantize as quantizing
from vitcifar.release.quantize import Candidate, activation_ranges, evaluate_candidate, quantize


@pytest.fixture(scope="module")
def network(published: Any) -> Any:
    return published.networks[1]


def test_calibration_ranges_cover_every_linear_layer(published: Any, network: Any) -> None:
    ranges = activation_ranges(network, published.splits.train)
    assert len(ranges) == 4 * len(network.blocks) + 1  # query and key-value are separate in the last block
    assert all(low <= 0 < high for low, high in ranges.values())


@pytest.fixture
def candidates(
    registry: Any, published: Any, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Candidate]]:
    """Quantize next to the float file in `tmp_path`; `times` are the (int8, float) latencies in ms of each candidate.

    The network's weights are random, its int8 predictions may differ: the minimum agreement is 0.
    """
    shutil.copy(registry.pull(1).onnx_path, tmp_path)
    names = published.splits.class_names

    def run(*times: tuple[float, float], minimum: float = 0.0, network: Any = network) -> list[Candidate]:
        left = iter(times)
        monkeypatch.setattr(quantizing, "onnx_p95", lambda paths: next(left))
        monkeypatch.setattr(quantizing, "MIN_AGREEMENT", minimum)
        return quantize(network, tmp_path / "model.onnx", published.splits, class_names=names, release_id="x")

    return run


def test_the_faster_of_two_accepted_candidates_serves(
    candidates: Callable[..., list[Candidate]], tmp_path: Path
) -> None:
    dynamic, static = candidates((2.0, 9.0), (1.0, 9.0))
    assert (dynamic.accepted, static.accepted) == (False, True)
    assert "the static model is faster" in dynamic.reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.int8.onnx", "model.onnx"]
    assert (tmp_path / "model.int8.onnx").stat().st_size == static.file_bytes


def test_a_slower_candidate_is_rejected_and_its_measurements_are_recorded(
    candidates: Callable[..., list[Candidate]], tmp_path: Path
) -> None:
    found = candidates((9.0, 2.0), (9.0, 2.0))
    assert [candidate.accepted for candidate in found] == [False, False]
    assert found[0].reason == "it is not faster: 95th percentile 9.0 ms, float 2.0 ms"
    assert found[0].file_bytes > 0
    json.dumps([dataclasses.asdict(candidate) for candidate in found])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_candidate_with_other_predictions_is_rejected(
    published: Any, candidates: Callable[..., list[Candidate]], tmp_path: Path
) -> None:
    """The int8 candidates are those of another network than the float file."""
    found = candidates((1.0, 9.0), (1.0, 9.0), minimum=0.99, network=published.networks[2])
    assert all("it agrees with the float file on" in candidate.reason for candidate in found)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_less_accurate_candidate_is_rejected(published: Any, toy_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The expected logits are always right, those of the file never: too few images agree, and fewer are right."""
    monkeypatch.setattr(quantizing, "onnx_p95", lambda paths: [1.0, 9.0])
    monkeypatch.setattr(quantizing, "MIN_AGREEMENT", 0.0)
    right = np.arange(40) % 3
    images = [np.eye(3, dtype=np.uint8)[(label + 1) % 3] * np.full((8, 8, 3), 200, np.uint8) for label in right]
    colours = dataclasses.replace(
        published.splits.test,
        images=images,
        labels=right,
        class_names=("red", "green", "blue"),
        ids=tuple(f"{index}" for index in right),
    )
    candidate = evaluate_candidate("dynamic", *[OnnxClassifier(toy_onnx)] * 2, colours, np.eye(3)[right])
    assert not candidate.accepted
    assert candidate.reason.startswith("it is less accurate, p = ")
    assert (candidate.accuracy, candidate.float_accuracy) == (0.0, 1.0)


def test_a_network_with_an_unsupported_layer_serves_in_float(
    candidates: Callable[..., list[Candidate]], published: Any, tmp_path: Path
) -> None:
    network = build_network(published.config, published.splits.class_names)
    network.backbone.conv_proj[0][-1] = torch.nn.Tanh()  # was a ReLU
    assert {candidate.reason for candidate in candidates(network=network)} == {
        "int8 does not support a Tanh layer in the patch embedding: the float file serves."
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_release_that_serves_in_int8_is_evaluated_in_int8(
    registry: Any, published: Any, network: Any, own_graph: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "MIN_AGREEMENT", 0.0)
    times = iter([[1.0, 9.0], [2.0, 9.0]])
    monkeypatch.setattr(quantizing, "onnx_p95", lambda paths: next(times))
    test = published.splits.test
    score = evaluate(predict_logits(network, test.images), test.labels, test.class_names, fingerprint="f" * 64)
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
    predictions = OnnxClassifier(release.onnx_path).logits(list(test.images)).argmax(axis=1)
    served = release.checks["served"]
    assert served["weight_bits"] == release.weight_bits == (7 if saturates_int8() else 8)
    assert served["evaluation"]["predictions"] == predictions.tolist()
    assert served["agreement"] == (predictions == score.predictions).mean()
    assert (served["num_edge_cases"], served["evaluation"]["fingerprint"]) == (18, "f" * 64)
    accuracy = eight.accuracy(version)
    assert accuracy == (predictions == test.labels).mean()
    found = gates.check_gates(eight, version, "champion", None, gates.Policy())
    assert next(gate for gate in found if gate.name == "accuracy").value == accuracy
    assert "model.int8.onnx serves: it agrees with the network on" in model_card(version, release)
