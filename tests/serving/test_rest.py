"""serving/: many files on the command line, REST through MLflow's own server, and no torch in either."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.toys import Published, make_image, make_onnx

from vitcifar import tracking
from vitcifar.errors import RegistryError, ReleaseError
from vitcifar.inference.session import OnnxClassifier
from vitcifar.release.manifest import Manifest
from vitcifar.serving.batch import Table, predict_files
from vitcifar.serving.loaded_model import LoadedModel, open_folder, open_version
from vitcifar.serving.rest import MAX_IMAGES, BadRequest, ImageModel, read_images

ROOT = Path(__file__).parents[2]


@pytest.fixture
def opened(toy_onnx: Path) -> LoadedModel:
    """A toy release as version 7 of `colours`, without a registry."""
    release = Manifest(
        release_id="toy",
        model_name="colours",
        class_names=("red", "green", "blue"),
        image_size=32,
        temperature=1.0,
        fingerprint="",
        run_id="",
    )
    return LoadedModel(model_name="colours", version=7, release=release, classifier=OnnxClassifier(toy_onnx))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A good file, one that is text, one that is missing, another good one."""
    paths = [tmp_path / name for name in ("red.png", "text.png", "none.png", "blue.jpg")]
    paths[0].write_bytes(make_image("red"))
    paths[1].write_text("no image")
    paths[3].write_bytes(make_image("blue", kind="JPEG"))
    return paths


def encoded(colour: str) -> str:
    return base64.b64encode(make_image(colour)).decode()


# Files


def test_a_bad_file_gets_its_sentence_and_the_rest_goes_on(opened, files):
    predictions = list(predict_files(opened, files))
    assert [p.answer.label if p.answer else None for p in predictions] == ["red", None, None, "blue"]
    assert "text.png" in predictions[1].error and "none.png" in predictions[2].error
    assert all(p.version == 7 and p.model_name == "colours" for p in predictions)


def test_each_file_is_one_line_of_json(opened, files):
    rows = [json.loads(prediction.to_json()) for prediction in predict_files(opened, files)]
    assert rows[0]["label"] == "red" and rows[0]["version"] == 7 and rows[0]["timing"]["total_ms"] > 0
    assert list(rows[0]["probabilities"]) == ["red", "green", "blue"]
    assert set(rows[1]) == {"path", "error"}


def test_the_lines_of_the_table_stand_under_their_heading(opened, files):
    table = Table(opened, files)
    lines = [table.heading(), *(table.line(prediction) for prediction in predict_files(opened, files))]
    assert len(lines[0]) == len(lines[1]) == len(lines[4])
    assert lines[0].index("label") == lines[1].index("red  ")


def test_a_name_with_control_characters_is_shown_without_them(opened):
    (prediction,) = predict_files(opened, ["bad\x1b[31m.png"])
    assert "\x1b" not in prediction.path + prediction.error


def test_files_are_answered_one_by_one(opened, files):
    stream = predict_files(opened, iter(files))
    assert isinstance(stream, Iterator) and next(stream).answer is not None


# What REST takes


@pytest.mark.parametrize(
    "given",
    [
        pd.DataFrame({"image": [encoded("red"), encoded("blue")]}),
        pd.DataFrame({"any": [encoded("red"), encoded("blue")]}),
        [encoded("red"), encoded("blue")],
        np.array([encoded("red"), encoded("blue")]),
        np.array([[encoded("red")], [encoded("blue")]]),
        {"image": [encoded("red"), encoded("blue")]},
        [{"image": encoded("red")}, {"image": encoded("blue")}],
        [f"data:image/png;base64,{encoded('red')}", encoded("blue") + "\n"],
        [make_image("red"), make_image("blue")],
        np.stack([np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255))]),
        np.stack([np.full((4, 4, 3), colour, np.int64) for colour in ((255, 0, 0), (0, 0, 255))]),
    ],
    ids=["image", "any", "list", "array", "column", "dict", "records", "data-url", "bytes", "uint8", "integers"],
)
def test_rest_takes_pictures_in_many_wrappings(opened, given):
    assert [row["label"] for row in ImageModel(opened).predict(given)] == ["red", "blue"]


def test_rest_says_who_answered(opened):
    (row,) = ImageModel(opened).predict([encoded("green")])
    assert row["label"] == "green" and next(iter(row["probabilities"])) == "green"
    assert (row["model"], row["version"], row["release_id"]) == ("colours", 7, "toy")
    assert json.loads(json.dumps(row)) == row


def test_one_text_is_one_picture(opened):
    assert len(ImageModel(opened).predict(np.array(encoded("red")))) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["not base64!"], "The image is not base64"),
        ([encoded("red"), "@@"], "Image 2 is not base64"),
        (["data:image/png,abc"], "without base64"),
        ([base64.b64encode(b"some text").decode()], "not an image"),
        ([base64.b64encode(make_image(size=(2000, 10))).decode()], "2000 x 10"),
        ([""], "empty"),
        ([None], "NoneType"),
        ([3.5], "float"),
        ([], "no image"),
        ([encoded("red")] * (MAX_IMAGES + 1), f"the limit is {MAX_IMAGES}"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "no column 'image' among a, b"),
        (np.zeros((1, 4, 4, 4), np.uint8), r"expected \(images, height, width, 3\)"),
        (np.full((1, 4, 4, 3), 256), "0 to 255"),
        (np.zeros((1, 4, 4, 3)), "float64"),
        (np.zeros((1, 0, 4, 3), np.uint8), "expected"),
    ],
)
def test_rest_refuses_what_is_no_picture_in_one_sentence(opened, given, sentence):
    with pytest.raises(BadRequest, match=sentence) as caught:
        ImageModel(opened).predict(given)
    assert caught.value.get_http_status_code() == 400
    assert "\n" not in json.loads(caught.value.serialize_as_json())["message"]


def test_no_pictures_in_an_array_are_no_answers(opened):
    assert ImageModel(opened).predict(np.zeros((0, 4, 4, 3), np.uint8)) == []


def test_an_array_keeps_its_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    np.testing.assert_array_equal(np.stack(read_images(images)), images)


# Versions of a real registry


def test_an_opened_version_answers_as_the_network_does(registry, published):
    import torch

    images = published.splits.test.images
    for number, network in published.networks.items():
        opened = open_version(registry, number)
        with torch.no_grad():
            expected = network.eval()(torch.from_numpy(np.stack(list(images)))).numpy()
        np.testing.assert_allclose(opened.classifier.logits(images), expected, atol=1e-3)
        assert opened.version == number and opened.name == f"toy version {number}"


def test_an_unknown_version_lists_what_there_is(registry):
    with pytest.raises(RegistryError, match="champion"):
        open_version(registry, "challenger")


def test_an_onnx_file_that_is_not_the_releases_own_is_refused(registry, monkeypatch, tmp_path):
    release = registry.pull(1)
    foreign = make_onnx(tmp_path / "model.onnx", release.class_names, release_id="another")
    monkeypatch.setattr(Manifest, "onnx_path", property(lambda self: foreign))
    with pytest.raises(ReleaseError, match="another release"):
        open_version(registry, 1)


def test_pyfunc_answers_arrays_and_files_alike(registry, published):
    import mlflow

    model = mlflow.pyfunc.load_model("models:/toy@champion")
    images = np.stack(list(published.splits.test.images[:3]))
    by_array = model.predict(images)
    import io

    from PIL import Image

    contents = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        contents.append(base64.b64encode(buffer.getvalue()).decode())
    by_file = model.predict(pd.DataFrame({"image": contents}))
    assert by_array == by_file
    assert {(row["model"], row["version"]) for row in by_array} == {("toy", 1)}


def test_another_whole_release_in_the_place_of_a_version_is_refused_at_every_door(
    registry, published, tmp_path, monkeypatch
):
    """Every file of version 2, hashes and all, where version 1 was: only the registry's digest tells."""
    import mlflow

    one, two = (Path(registry.location(registry.show(n)).removeprefix("file://")) for n in (1, 2))
    kept = shutil.copytree(one, published.folder / "kept")
    try:
        shutil.rmtree(one)
        shutil.copytree(two, one)
        monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "empty"))
        with pytest.raises(ReleaseError, match="was changed: its sha256 is not the one the version was given"):
            mlflow.pyfunc.load_model("models:/toy/1")
        with pytest.raises(ReleaseError):
            open_version(registry, 1)
    finally:
        shutil.rmtree(one)
        shutil.move(kept, one)


def test_a_release_is_answered_by_its_own_list_where_there_is_no_registry(registry, tmp_path, monkeypatch):
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/toy/1", dst_path=str(tmp_path / "image")))
    assert (folder / "registered_model_meta").is_file()
    tracking.connect(f"sqlite:///{tmp_path}/empty.db")
    with pytest.warns(UserWarning, match="held against its own list alone"):
        assert open_folder(folder).name == "toy version 1"


def test_a_changed_file_is_refused_before_it_is_opened(registry, tmp_path):
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/toy/1", dst_path=str(tmp_path)))
    assert open_folder(folder).version == 1
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ReleaseError, match="was changed"):
        open_folder(folder)


# The real server


@pytest.fixture(scope="module")
def server(published: Published) -> Iterator[str]:
    """`mlflow models serve` on the champion, as the README starts it."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/toy@champion"]
    environ = os.environ | {
        "MLFLOW_TRACKING_URI": published.uri,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with subprocess.Popen(
        [*command, "--env-manager", "local", "--port", str(port)],
        env=environ,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/ping")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(url: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.2)


def post(url: str, body: object) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/invocations", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [encoded("red")]},
        {"instances": [encoded("red")]},
        {"inputs": {"image": [encoded("red")]}},
        {"dataframe_records": [{"image": encoded("red")}]},
        {"dataframe_split": {"columns": ["image"], "data": [[encoded("red")]]}},
    ],
    ids=lambda body: next(iter(body)),
)
def test_the_server_answers_base64_pictures(server, body):
    status, answer = post(server, body)
    assert status == 200
    (row,) = answer["predictions"]
    assert row["model"] == "toy" and row["version"] == 1
    assert row["label"] == next(iter(row["probabilities"]))
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("image", ["not base64!", base64.b64encode(b"some text").decode()])
def test_the_server_answers_400_with_one_sentence(server, image):
    status, answer = post(server, {"inputs": [image]})
    assert status == 400
    assert answer["error_code"] == "INVALID_PARAMETER_VALUE"
    assert answer["message"].startswith("The image is not") and "\n" not in answer["message"]


def test_the_curl_call_of_the_readme_works(server, tmp_path):
    (tmp_path / "cat.png").write_bytes(make_image("red"))
    command = (
        """(printf '{"inputs": ["'; base64 < cat.png | tr -d '\\n'; printf '"]}') | """
        f"curl -s {server}/invocations -H 'Content-Type: application/json' -d @-"
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["predictions"][0]["version"] == 1


# No torch


@pytest.mark.parametrize("door", ["batch", "rest", "page"])
def test_no_door_loads_torch(registry, published, tmp_path, door):
    (tmp_path / "red.png").write_bytes(make_image("red"))
    code = {
        "batch": "from vitcifar.serving.batch import predict_files\n"
        "from vitcifar.serving.loaded_model import open_version\n"
        "from vitcifar.registry.registry import Registry\n"
        "assert next(predict_files(open_version(Registry('toy'), 'champion'), ['red.png'])).answer\n",
        "rest": "import mlflow, numpy\n"
        "model = mlflow.pyfunc.load_model('models:/toy@champion')\n"
        "assert model.predict(numpy.zeros((2, 9, 8, 3), 'uint8'))[1]['version'] == 1\n",
        "page": "from vitcifar.serving.app import launch\n"
        "from vitcifar.registry.registry import Registry\n"
        "launch(Registry('toy'), port=0).close()\n",
    }[door]
    code += "import sys\nassert not {'torch', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
