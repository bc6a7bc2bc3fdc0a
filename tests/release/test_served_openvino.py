"""OpenVINO gives the predictions of onnxruntime, and a release that it serves is checked and opened with it."""

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.networks import CLASSES, random_images, tiny
from support.releases import publish

from vitcifar.errors import ReleaseError
from vitcifar.evaluation.metrics import evaluate
from vitcifar.inference.openvino_session import fastest_precision, is_installed
from vitcifar.inference.session import OnnxClassifier
from vitcifar.model.predict import predict_logits
from vitcifar.registry import gates, variants
from vitcifar.registry.card import model_card
from vitcifar.registry.registry import Registry
from vitcifar.release import quantize as quantizing
from vitcifar.release.latency import latency_table
from vitcifar.release.onnx_graph import save_graph
from vitcifar.serving.loaded_model import open_version

pytestmark = pytest.mark.skipif(not is_installed(), reason="OpenVINO is not installed: pip install -e '.[openvino]'")
SIZES = ((32, 32), (20, 24), (64, 64), (100, 33), (7, 300), (400, 371), (1, 1))  # height and width of images


def images() -> list[np.ndarray]:
    return [random_images(*size, seed=index) for index, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Our graph of a network: float, with merged tokens, and int8."""
    folder = tmp_path_factory.mktemp("graphs")
    paths = {name: folder / f"{name}.onnx" for name in ("float", "merging", "int8")}
    for name, path in paths.items():
        network = tiny(token_merging=2 if name == "merging" else 0)
        save_graph(network, path, class_names=CLASSES, release_id="x", int8=name == "int8")
    return paths


@pytest.mark.parametrize("name", ["exported", "float", "merging"])
def test_images_of_any_size_have_the_logits_and_embeddings_of_onnxruntime(
    graphs: dict[str, Path], exported: Path, name: str
) -> None:
    """OpenVINO by itself would ignore that images are made smaller with antialiasing."""
    path = {**graphs, "exported": exported}[name]
    ours, expected = OnnxClassifier(path, openvino="fp32"), OnnxClassifier(path)
    for one, other in zip(ours.logits_and_embeddings(images()), expected.logits_and_embeddings(images()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert (ours.class_names, ours.temperature, ours.release_id) == (
        *(expected.class_names, expected.temperature),
        expected.release_id,
    )


@pytest.mark.skipif(is_installed() and fastest_precision() != "bf16", reason="this processor has no bfloat16")
def test_bfloat16_is_near_and_not_equal(graphs: dict[str, Path]) -> None:
    expected = OnnxClassifier(graphs["float"]).logits(images())
    difference = np.abs(OnnxClassifier(graphs["float"], openvino="bf16").logits(images()) - expected).max()
    assert 1e-3 < difference < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("options", [{}, {"num_threads": 1}, {"concurrent": True}], ids=str)
def test_requests_at_the_same_time_have_the_predictions_of_one_alone(
    graphs: dict[str, Path], options: dict[str, Any]
) -> None:
    model = OnnxClassifier(graphs["float"], openvino="fp32", **options)
    model.warm()
    expected = model.logits(images())
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: model.logits(images()), range(16)):
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_graph_that_openvino_cannot_read_is_one_sentence(graphs: dict[str, Path]) -> None:
    with pytest.raises(ReleaseError, match=r"OpenVINO cannot open .*No conversion rule found for operations") as caught:
        OnnxClassifier(graphs["int8"], openvino="fp32")
    assert "\n" not in str(caught.value)


def test_openvino_is_imported_without_what_sends_messages_over_the_network() -> None:
    code = (
        "import sys; from vitcifar.inference.openvino_session import fastest_precision; assert fastest_precision();"
        "print([name for name in sys.modules if 'telemetry' in name or name in ('torch', 'openvino.tools.ovc')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_release_that_openvino_serves_is_checked_and_opened_with_it(
    registry: Any, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "MIN_AGREEMENT", 0.0)  # the weights are random
    monkeypatch.setattr(quantizing, "onnx_p95", lambda models: [1.0, 9.0])
    network, test, precision = published.networks[1], published.splits.test, fastest_precision()
    score = evaluate(predict_logits(network, test.images), test.labels, test.class_names, fingerprint="f" * 64)
    number = publish(
        network,
        splits=published.splits,
        evaluation=score.to_dict(),
        config=dataclasses.replace(published.config, model_name="inferred"),
        run_id=published.run_id,
        openvino=True,
    )
    inferred = Registry("inferred")
    release, version = inferred.pull(number, pytorch=True), inferred.show(number)
    assert (release.serves, release.serving_format) == ("model.onnx", f"openvino-{precision}")
    assert version.tags["serves"] == f"openvino-{precision}"
    assert "model.onnx in OpenVINO serves: it agrees" in model_card(version, release)
    assert "openvino==" in release.path("requirements.txt").read_text()
    expected = OnnxClassifier(release.onnx_path, openvino=precision).logits(test.images)
    assert release.checks["served"]["evaluation"]["predictions"] == expected.argmax(axis=1).tolist()
    model = open_version(inferred, number)
    np.testing.assert_array_equal(model.classifier.logits(test.images), expected)
    found = {gate.name: gate for gate in gates.check_gates(inferred, version, "champion", None, gates.Policy())}
    assert f"the served model.onnx in OpenVINO ({precision}) agrees" in found["parity"].message
    table = latency_table(release, threads=[1], num_runs=1)
    assert table.row(f"openvino-{precision}", 1) is not None
    assert f"openvino-{precision}" in variants.formats()
