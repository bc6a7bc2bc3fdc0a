"""From a network to a version with three flavors that agree, or to nothing at all when a proof fails."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from vitcifar.errors import ReleaseError
from vitcifar.inference.session import OnnxClassifier
from vitcifar.release import build as publishing
from vitcifar.release.export import export_onnx
from vitcifar.release.flavor import requirements
from vitcifar.release.manifest import verify
from vitcifar.release.parity import check_parity, edge_case_files, measure_parity, network_logits, require_match

SIZES = [(1, 32, 32), (2, 8, 8), (3, 40, 50), (7, 300, 200)]  # images, height, width


def some_images(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (number, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(published: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of version 2's network, exported again with another release id and temperature."""
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    network = published.networks[2]
    network.temperature.fill_(1.7)
    export_onnx(network.train(), path, class_names=published.splits.class_names, release_id="again")
    assert network.training  # as it was
    return path


@pytest.mark.parametrize("size", SIZES)
def test_the_onnx_file_answers_as_the_network_at_every_size_and_number(
    published: Any, exported: Path, size: tuple[int, int, int]
) -> None:
    images = some_images(*size)
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {"image": images})
    expected = network_logits(published.networks[2], images)
    np.testing.assert_allclose(logits, expected, atol=5e-5)
    np.testing.assert_allclose(probabilities, torch.softmax(torch.tensor(expected) / 1.7, -1).numpy(), atol=1e-5)


def test_the_onnx_file_says_what_it_is_and_needs_no_other_file(published: Any, exported: Path) -> None:
    classifier = OnnxClassifier(exported)
    assert classifier.class_names == published.splits.class_names
    assert (classifier.release_id, classifier.image_size) == ("again", 32)
    assert classifier.temperature == pytest.approx(1.7)
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]
    proto = onnx.load(exported)
    assert proto.opset_import[0].version == 20
    onnx.checker.check_model(proto)


def test_no_path_of_this_machine_is_in_the_onnx_file(exported: Path) -> None:
    content = exported.read_bytes()
    for trace in (str(Path(__file__).parents[2]), str(Path(torch.__file__).parent), "network.py", "torch/nn"):
        assert trace.encode() not in content


def test_parity_is_measured_on_every_picture(published: Any, exported: Path) -> None:
    parity = check_parity(published.networks[2], exported, published.splits.test)
    assert parity.num_images == len(published.splits.test) + parity.num_edge_cases
    assert parity.num_edge_cases == 18
    assert parity.max_logit_difference < 1e-4
    assert parity.num_changed == 0
    assert parity.worst_id in (*published.splits.test.ids, *edge_case_files())


def test_parity_fails_when_another_network_is_asked(published: Any, exported: Path) -> None:
    with pytest.raises(ReleaseError, match=r"does not answer as the network does.*Nothing was registered"):
        check_parity(published.networks[1], exported, published.splits.test)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["network", "file", "both"])
def test_parity_fails_closed_on_numbers_that_are_not_finite(wrong: float, side: str) -> None:
    expected, actual = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    if side in ("network", "both"):
        expected[1, 1] = wrong
    if side in ("file", "both"):
        actual[1, 1] = wrong
    parity = measure_parity(expected, actual, ("a", "b", "c"))
    assert (parity.num_changed, parity.worst_id, parity.max_logit_difference) == (1, "b", np.inf)
    with pytest.raises(ReleaseError, match="worst on 'b'"):
        require_match(parity)


def test_parity_names_the_changed_picture_rather_than_the_largest_difference() -> None:
    expected = np.array([[0.0, 1.0], [0.5, 0.49999]])
    actual = np.array([[0.0, 1.00005], [0.49999, 0.5]])
    parity = measure_parity(expected, actual, ("sure", "tied"))
    assert (parity.num_changed, parity.worst_id) == (1, "tied")


def test_parity_over_no_pictures_proves_nothing(published: Any, exported: Path) -> None:
    with pytest.raises(ReleaseError, match="no image"):
        check_parity(published.networks[2], exported, published.splits.test.subset([]))


def three_flavors(address: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """Probabilities (N, K) of each flavor of one version, loaded with MLflow alone."""
    pytorch = mlflow.pytorch.load_model(address)(torch.from_numpy(images))[1].detach().numpy()
    proto = mlflow.onnx.load_model(address)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    pyfunc = mlflow.pyfunc.load_model(address).predict(images)
    return {
        "pytorch": pytorch,
        "onnx": session.run(["probabilities"], {"image": images})[0],
        "python_function": np.array([[row["probabilities"][name] for name in names] for row in pyfunc]),
    }


@pytest.mark.parametrize("address", ["models:/toy/1", "models:/toy@champion"])
def test_three_flavors_give_the_same_answers(registry: Any, published: Any, address: str) -> None:
    for size in SIZES:
        images = some_images(*size)
        expected = network_logits(published.networks[1], images)
        expected = torch.softmax(torch.from_numpy(expected), -1).numpy()
        for flavor, answers in three_flavors(address, images).items():
            np.testing.assert_allclose(answers, expected, atol=1e-5, err_msg=flavor)


def test_the_python_function_reads_picture_files(registry: Any, published: Any) -> None:
    image = some_images(1, 40, 50)[0]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    model = mlflow.pyfunc.load_model("models:/toy/1")
    (from_bytes,), (from_array,) = model.predict([buffer.getvalue()]), model.predict(image[None])
    assert from_bytes["probabilities"] == from_array["probabilities"]
    assert from_bytes["version"] == 1


def test_the_whole_folder_of_a_version_is_covered_by_its_digest(registry: Any, tmp_path: Path) -> None:
    version = registry.show(1)
    folder = mlflow.artifacts.download_artifacts("models:/toy/1", dst_path=str(tmp_path))
    release = verify(folder, digest=version.digest)
    assert {"MLmodel", "conda.yaml", "data/model.pt2", "model.onnx", "requirements.txt"} <= set(release.files)
    assert set(mlflow.models.Model.load(folder).flavors) == {"pytorch", "onnx", "python_function"}


def test_release_json_says_where_the_release_came_from(registry: Any, published: Any) -> None:
    release = registry.pull(1)
    assert release.run_id == published.run_id
    assert release.fingerprint == published.splits.fingerprint == registry.show(1).fingerprint
    assert release.config == dataclasses.asdict(published.config)
    assert release.counts["test"] == dict.fromkeys(published.splits.class_names, 2)
    assert release.environment["packages"]["mlflow"] == mlflow.__version__
    assert release.checks["parity"]["num_images"] == len(published.splits.test) + 18
    assert release.preprocessing["resize"] == "bilinear, antialiased"


def test_training_can_start_from_the_weights_of_a_version(registry: Any, published: Any) -> None:
    weights = registry.state_dict("models:/toy@champion")
    expected = published.networks[1].state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_a_pt2_that_holds_a_pickle_is_not_loaded(registry: Any) -> None:
    from vitcifar.release.load import load_weights

    release = registry.pull(1, pytorch=True)
    path = release.path("data/model.pt2")
    whole = path.read_bytes()
    try:
        torch.save({"network": torch.nn.Linear(1, 1)}, path)
        with pytest.raises(ReleaseError, match="are not plain tensors"):
            load_weights(release)
    finally:
        path.write_bytes(whole)


def test_a_release_asks_for_what_pypi_has(registry: Any) -> None:
    assert all("==" in line and "+" not in line for line in requirements())


def test_a_failed_proof_registers_nothing(
    registry: Any, published: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def export_another(network: Any, path: Path, **more: Any) -> None:
        more.pop("program")
        export_onnx(published.networks[1], path, **more)

    monkeypatch.setattr(publishing, "export_onnx", export_another)
    before = [version.number for version in registry.list()]
    models = len(mlflow.search_logged_models(output_format="list", filter_string="name = 'release'"))
    with pytest.raises(ReleaseError, match="Nothing was registered"):
        publishing.build_release(
            published.networks[2],
            splits=published.splits,
            evaluation={},
            config=published.config,
            run_id=published.run_id,
        )
    assert [version.number for version in registry.list()] == before
    assert len(mlflow.search_logged_models(output_format="list", filter_string="name = 'release'")) == models
