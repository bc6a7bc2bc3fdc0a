"""One MLflow model, three flavors: they agree when MLflow alone loads them."""

import base64
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from PIL import Image
from support.exports import random_images
from support.project import ROOT

from vitcifar.errors import ReleaseError
from vitcifar.model.predict import predict_logits
from vitcifar.registry.registration import register
from vitcifar.release.flavor import requirements, signature
from vitcifar.release.manifest import read_manifest, sha256_of, verify


def three_flavors(uri: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """Probabilities (N, K) of each flavor of one version, loaded with MLflow alone."""
    pytorch = mlflow.pytorch.load_model(uri)(torch.from_numpy(images))[1].detach().numpy()
    proto = mlflow.onnx.load_model(uri)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    pyfunc = mlflow.pyfunc.load_model(uri).predict({"image": images})
    return {
        "pytorch": pytorch,
        "onnx": session.run(["probabilities"], {"image": images})[0],
        "python_function": np.array([[row["probabilities"][name] for name in names] for row in pyfunc]),
    }


@pytest.mark.parametrize("uri", ["models:/toy/1", "models:/toy@champion"])
def test_three_flavors_give_the_same_probabilities(registry: Any, published: Any, uri: str) -> None:
    for size in [(1, 32, 32), (7, 300, 200)]:
        images = random_images(*size)
        expected = torch.softmax(torch.from_numpy(predict_logits(published.networks[1], images)), -1).numpy()
        for flavor, probabilities in three_flavors(uri, images).items():
            np.testing.assert_allclose(probabilities, expected, atol=1e-5, err_msg=flavor)


def test_the_python_function_accepts_image_files(registry: Any, published: Any) -> None:
    image = random_images(1, 40, 50)[0]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    model = mlflow.pyfunc.load_model("models:/toy/1")
    (from_bytes,), (from_array,) = model.predict({"image": [buffer.getvalue()]}), model.predict({"image": image[None]})
    assert from_bytes["probabilities"] == from_array["probabilities"]
    assert from_bytes["version"] == 1


def test_the_digest_covers_every_file_of_a_version(registry: Any, tmp_path: Path) -> None:
    version = registry.show(1)
    folder = mlflow.artifacts.download_artifacts("models:/toy/1", dst_path=str(tmp_path))
    release = verify(folder, digest=version.digest)
    assert {"MLmodel", "conda.yaml", "data/model.pt2", "model.onnx", "requirements.txt"} <= set(release.files)
    assert set(mlflow.models.Model.load(folder).flavors) == {"pytorch", "onnx", "python_function"}


def test_a_version_brings_what_serves_it_without_torch(registry: Any, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts("models:/toy/1", dst_path=str(tmp_path)))
    find_links, *pins, wheel = (folder / "requirements.txt").read_text().splitlines()
    assert find_links == "--find-links ."
    assert pins == requirements()
    assert (folder / f"{wheel.replace('==', '-')}-py3-none-any.whl").is_file()
    assert not {"torch", "mlflow"} & {line.split("==")[0] for line in pins}
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", tmp_path / "site"]
    (folder / "vitcifar.txt").write_text(f"{find_links}\n{wheel}\n")
    subprocess.run([*command, "-r", folder / "vitcifar.txt"], cwd=tmp_path.parent, check=True)  # not in its folder
    assert (tmp_path / "site/vitcifar/serving/rest.py").is_file()


def test_a_package_without_metadata_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxscript-0.7.2.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ReleaseError, match="The installation of onnxscript is incomplete: install it again with pip"):
        requirements()


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_mlflow_shows_what_the_python_function_takes_and_returns_and_an_example(registry: Any) -> None:
    info = mlflow.models.get_model_info("models:/toy/1")
    model = mlflow.pyfunc.load_model("models:/toy/1")
    (row,) = model.predict(model.input_example)
    (column,) = info.signature.inputs.to_dict()
    assert column == {"type": "string", "name": "image", "required": True}
    assert list(row) == info.signature.outputs.input_names()
    assert len(info.saved_input_example_info) == 4 and list(model.input_example.columns) == ["image"]


def test_every_store_gives_the_schema_and_the_example_of_a_version(published: Any, workspace: Path) -> None:
    """The files of version 1, registered in a SQLite store and on a server, whose artifacts come through its proxy."""
    location = mlflow.MlflowClient(published.uri, published.uri).get_model_version_download_uri("toy", "1")
    manifest = Path(location.removeprefix("file://"), "release.json")
    client = mlflow.MlflowClient()
    model = client.create_logged_model("0", name="release", source_run_id=client.create_run("0").info.run_id)
    client.log_model_artifacts(model.model_id, str(manifest.parent))
    number = register(read_manifest(manifest), model.model_id, sha256_of(manifest))
    assert Model.load(f"models:/toy/{number}").signature == signature()
    loaded = mlflow.pyfunc.load_model(f"models:/toy/{number}")
    (row,) = loaded.predict(loaded.input_example)
    assert list(row) == signature().outputs.input_names() and row["version"] == number


def test_a_table_may_be_longer_than_a_request(registry: Any) -> None:
    model = mlflow.pyfunc.load_model("models:/toy/1")
    images = random_images(103, 8, 8)
    rows = model.predict(pd.DataFrame({"image": [png(image) for image in images]}))
    assert [row["label"] for row in rows] == [row["label"] for row in model.predict({"image": images})]


PIXELS = random_images(3, 8, 9)
FILES = [png(image) for image in PIXELS]
OTHERS = [png(255 - image) for image in PIXELS]
TEXTS = [base64.b64encode(content).decode() for content in FILES]


@pytest.mark.parametrize(
    "model_input",
    [
        pd.DataFrame({"image": TEXTS}),
        pd.DataFrame({"thumbnail": OTHERS, "image": FILES}),
        pd.DataFrame({"image": FILES, "id": [1, 2, 3]}),
        pd.DataFrame({"image": list(PIXELS)}),
        pd.Series(FILES, name="image"),
        [{"id": number, "image": text} for number, text in enumerate(TEXTS)],
        {"image": TEXTS},
        {"image": np.array(TEXTS)},
        {"image": PIXELS},
        {"image": list(PIXELS)},
        {"image": PIXELS.tolist()},
    ],
    ids=[
        *("text", "image-second", "image-first", "arrays", "series", "records", "dict", "dict-array"),
        *("pixels", "list-of-pixels", "pixel-lists"),
    ],
)
def test_mlflow_passes_the_column_image_in_every_form(registry: Any, model_input: Any) -> None:
    model = mlflow.pyfunc.load_model("models:/toy/1")
    expected = model.predict(pd.DataFrame({"image": FILES}))
    assert len({json.dumps(row) for row in expected}) == 3  # the images differ, so that a swap would be seen
    assert model.predict(model_input) == expected


@pytest.mark.parametrize(
    "model_input",
    [FILES, TEXTS, TEXTS[0], PIXELS, PIXELS[0], PIXELS.tolist(), PIXELS[0].tolist(), pd.DataFrame({"id": TEXTS})],
    ids=["files", "texts", "text", "array", "image", "lists", "image-lists", "other-column"],
)
def test_mlflow_refuses_what_has_no_column_image(registry: Any, model_input: Any) -> None:
    with pytest.raises(MlflowException, match=r"Model is missing inputs \['image'\]|Must pass 2-d input"):
        mlflow.pyfunc.load_model("models:/toy/1").predict(model_input)


def test_mlflow_predicts_from_the_example_of_a_version(registry: Any, published: Any, tmp_path: Path) -> None:
    """As a user types it: in a process of its own, which MLflow starts."""
    example = mlflow.pyfunc.load_model("models:/toy/1").input_example
    path = tmp_path / "predictions.json"
    mlflow.models.predict("models:/toy/1", input_data=example, output_path=str(path), env_manager="local")
    (row,) = json.loads(path.read_text())["predictions"]
    assert row["version"] == 1 and sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_mlflow_evaluates_a_version_from_a_table(registry: Any, published: Any) -> None:
    test = published.splits.test
    labels = [test.class_names[label] for label in test.labels]
    table = pd.DataFrame({"image": [png(image) for image in test.images], "label": labels})
    expected = np.mean([row["label"] == label for row, label in zip(predict(table), labels, strict=True)])
    result = mlflow.models.evaluate(
        "models:/toy/1",
        table,
        targets="label",
        model_type="classifier",
        model_config={"output": "label"},
        evaluator_config={"log_explainer": False},
    )
    assert result.metrics["accuracy_score"] == pytest.approx(expected)


def predict(table: pd.DataFrame) -> list[dict[str, Any]]:
    return mlflow.pyfunc.load_model("models:/toy/1").predict(table[["image"]])


def test_no_file_of_a_version_names_a_path_of_the_machine_that_made_it(registry: Any, published: Any) -> None:
    folder = registry.pull(1, pytorch=True).folder
    contents = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with zipfile.ZipFile(folder / "data/model.pt2") as archive:
        contents |= {one.filename: archive.read(one) for one in archive.infolist()}
    assert {"MLmodel", "release.json", "requirements.txt"} <= set(contents)
    paths = [str(published.folder), sys.prefix, sys.base_prefix, str(ROOT), str(Path.home())]
    found = [(name, path) for name, content in contents.items() for path in paths if f"{path}/".encode() in content]
    assert found == []
