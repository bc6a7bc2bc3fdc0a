"""REST through MLflow: what a request may hold, and MLflow's own server."""

import base64
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.project import ROOT
from support.serving import make_model, wait_until
from support.toys import Published, make_image

from vitcifar.serving import rest
from vitcifar.serving.app import bind
from vitcifar.serving.rest import MAX_IMAGES, BadRequest, ImageModel, decode_base64, read_images

RED_AND_BLUE = np.stack([np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255))])


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(colour: str) -> str:
    return base64.b64encode(make_image(colour)).decode()


@pytest.mark.parametrize(
    "model_input",
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
        RED_AND_BLUE,
        RED_AND_BLUE.astype(np.int64),
        RED_AND_BLUE.astype(float),
        RED_AND_BLUE.tolist(),
        {"image": RED_AND_BLUE},
        pd.DataFrame({"image": RED_AND_BLUE.tolist()}),
        [RED_AND_BLUE[0].tolist(), RED_AND_BLUE[1, :2].tolist()],
        [encoded("red"), RED_AND_BLUE[1].tolist()],
        pd.DataFrame({"image": RED_AND_BLUE.astype(str).tolist()}),
        pd.DataFrame({"image": RED_AND_BLUE.astype(float).astype(str).tolist()}),
    ],
    ids=[
        *("image", "any", "list", "array", "column", "dict", "records", "data-url", "bytes", "uint8", "integers"),
        *("floats", "nested", "column-of-arrays", "column-of-lists", "sizes", "mixed"),
        *("numbers-as-text", "floats-as-text"),
    ],
)
def test_rest_accepts_images_in_every_form_that_mlflow_passes(model, model_input):
    assert [row["label"] for row in ImageModel(model).predict(model_input)] == ["red", "blue"]


def test_a_prediction_names_the_model_the_version_and_the_release(model):
    (row,) = ImageModel(model).predict([encoded("green")])
    assert row["label"] == "green" and next(iter(row["probabilities"])) == "green"
    assert (row["model"], row["version"], row["release_id"], row["confident"]) == ("colours", 7, "toy", None)
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(("threshold", "confident"), [(0.0, None), (0.5, True), (0.99999999, False), (None, False)])
def test_a_prediction_says_whether_it_is_confident(toy_onnx, threshold, confident):
    (row,) = ImageModel(make_model(toy_onnx, threshold=threshold)).predict([encoded("green")])
    assert row["confident"] is confident


def test_the_images_of_a_request_have_a_limit_together(model, monkeypatch):
    monkeypatch.setattr(rest, "MAX_REQUEST_PIXELS", 2 * 32 * 32)
    assert len(ImageModel(model).predict([encoded("red")] * 2)) == 2
    with pytest.raises(BadRequest, match=r"more than 2,048 pixels together: send fewer at once"):
        ImageModel(model).predict([encoded("red")] * 3)


def test_outside_of_a_server_an_array_may_have_any_length(model):
    images = np.zeros((MAX_IMAGES + 1, 2, 2, 3), np.uint8)
    assert len(ImageModel(model, served=False).predict(images)) == len(images)


def test_a_single_string_is_one_image(model):
    assert len(ImageModel(model).predict(np.array(encoded("red")))) == 1


@pytest.mark.parametrize("form", [np.asarray, np.ndarray.tolist, lambda image: {"image": image}, np.float32])
def test_an_array_of_one_image_is_one_image(model, form):
    (row,) = ImageModel(model).predict(form(RED_AND_BLUE[1]))
    assert row["label"] == "blue"


@pytest.mark.parametrize(
    "text",
    [
        base64.urlsafe_b64encode(bytes(range(256))).decode(),
        base64.b64encode(bytes(range(256))).decode().rstrip("="),
        base64.urlsafe_b64encode(bytes(range(256))).decode().rstrip("=") + "\n",
        base64.encodebytes(bytes(range(256))).decode().replace("\n", "\r\n"),
        f"data:image/png;base64,{base64.b64encode(bytes(range(256))).decode()}",
        f"DATA:image/png;Base64,{base64.b64encode(bytes(range(256))).decode().replace('=', '%3D')}",
    ],
    ids=["url-safe", "unpadded", "both", "lines", "data-url", "escaped data-url"],
)
def test_base64_is_decoded_however_a_library_writes_it(text):
    assert decode_base64(text, "The image") == bytes(range(256))


@pytest.mark.parametrize(
    ("model_input", "message"),
    [
        (["not base64!"], "The image is not base64, it has the character '!'"),
        ([encoded("red"), "@@"], "Image 2 is not base64, it has the character '@'"),
        (["abcde"], "The image is not base64, it is incomplete"),
        (["https://example.com/cat.png"], "The image is an address, from which nothing is downloaded"),
        (["data:image/png,abc"], "without base64"),
        ([base64.b64encode(b"some text").decode()], "not a supported image"),
        ([base64.b64encode(make_image(size=(2000, 10))).decode()], "2000 x 10"),
        ([""], "empty"),
        ([None], "NoneType"),
        ([3.5], "float"),
        ([], "no image"),
        ([encoded("red")] * (MAX_IMAGES + 1), f"the limit is {MAX_IMAGES}"),
        (
            np.zeros((MAX_IMAGES + 1, 2, 2, 3), np.uint8),
            f"There are 101 images in the request, the limit is {MAX_IMAGES}",
        ),
        (np.zeros((20_000, 1, 1, 3), int).tolist(), f"the limit is {MAX_IMAGES}"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "no column 'image' among a, b"),
        (np.zeros((1, 4, 4, 4), np.uint8), r"expected \(images, height, width, 3\)"),
        (np.full((1, 4, 4, 3), 256), "0 to 255"),
        (np.zeros((1, 4, 4, 3)), "float64"),
        (np.full((1, 4, 4, 3), 0.5), "float64 values from 0 to 1: multiply them by 255"),
        (np.full((4, 4, 3), 2.5), "float64 values with fractions: expected whole numbers from 0 to 255"),
        (np.full((4, 4, 3), -1).tolist(), "int64 values from -1 to -1: expected whole numbers from 0 to 255"),
        (np.full((4, 4, 3), np.nan), "values from nan to nan"),
        (np.full((4, 4, 3), True), "bool values"),
        (np.zeros((3, 4, 4), np.uint8), r"\(3, 4, 4\): expected .*\(height, width, 3\) for one image"),
        (np.zeros((4, 4), np.uint8).tolist(), r"\(4, 4\): expected"),
        ([RED_AND_BLUE[0].tolist(), np.full((2, 2, 3), 300).tolist()], "Image 2 has int64 values from 300 to 300"),
        (np.zeros((1, 0, 4, 3), np.uint8), "expected"),
        ([[[[1, 2, 3], [1, 2]]], RED_AND_BLUE[0].tolist()], "Image 1 has rows or pixels of different lengths"),
        ([[[1, 2, None]]], "values that are no numbers, or too large"),
        ([[[1, 2, "x"]]], "values that are no numbers, or too large"),
        ([[["1", "2", "256"]]], "values from 1 to 256: expected whole numbers from 0 to 255"),
        ([[["1", "2", "x"]]], "Image 1 is not base64, it is incomplete"),
        ([[["1", "2"]]], r"of shape \(1, 1, 2\): expected"),
    ],
)
def test_an_invalid_request_is_a_400_with_one_sentence(model, model_input, message):
    with pytest.raises(BadRequest, match=message) as caught:
        ImageModel(model).predict(model_input)
    assert caught.value.get_http_status_code() == 400
    assert "\n" not in json.loads(caught.value.serialize_as_json())["message"]


def test_an_empty_array_gives_no_predictions(model):
    assert ImageModel(model).predict(np.zeros((0, 4, 4, 3), np.uint8)) == []


def test_the_pixels_of_an_array_are_unchanged():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    np.testing.assert_array_equal(np.stack(read_images(images)), images)


def test_pyfunc_predicts_the_same_for_arrays_and_files(registry, published):
    import mlflow

    model = mlflow.pyfunc.load_model("models:/toy@champion")
    images = np.stack(list(published.splits.test.images[:3]))
    by_array = model.predict({"image": images})
    contents = [base64.b64encode(png(image)).decode() for image in images]
    by_file = model.predict(pd.DataFrame({"image": contents}))
    assert by_array == by_file
    assert {(row["model"], row["version"]) for row in by_array} == {("toy", 1)}


@pytest.fixture(scope="module")
def server(published: Published) -> Iterator[str]:
    """`mlflow models serve` on the champion, as the README starts it."""
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
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
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_up(f"{url}/ping"), f"{url} does not respond", seconds=90)
            yield url
        finally:
            os.killpg(process.pid, 15)


def is_up(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def post(url: str, body: object, content_type: str = "application/json") -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/invocations", data, {"Content-Type": content_type})
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
        {"inputs": RED_AND_BLUE[0].tolist()},
        {"instances": RED_AND_BLUE[:1].astype(float).tolist()},
        {"dataframe_records": [{"image": RED_AND_BLUE[0].tolist()}]},
        {"inputs": {"image": encoded("red")}},
        {"inputs": [{"image": encoded("red")}]},
        {"inputs": {"image": RED_AND_BLUE[:1].tolist()}},
        {"inputs": {"id": [7], "image": [encoded("red")]}},
        {"instances": [{"id": 7, "image": encoded("red")}]},
        {"dataframe_split": {"columns": ["thumbnail", "image"], "data": [[encoded("blue"), encoded("red")]]}},
        {"inputs": [f"data:image/png;base64,{encoded('red')}"]},
        {"dataframe_records": [{"image": base64.urlsafe_b64encode(make_image("red")).decode().rstrip("=")}]},
    ],
    ids=lambda body: next(iter(body)),
)
def test_the_server_classifies_an_image_in_every_form(server, body):
    status, response = post(server, body)
    assert status == 200
    (row,) = response["predictions"]
    assert row["model"] == "toy" and row["version"] == 1 and "confident" in row
    assert row["label"] == next(iter(row["probabilities"]))
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    red, blue = post(server, {"inputs": [encoded("red"), encoded("blue")]})[1]["predictions"]
    assert row["probabilities"] == pytest.approx(red["probabilities"], abs=1e-5)
    assert row["probabilities"] != pytest.approx(blue["probabilities"], abs=1e-3)


def test_the_server_gives_a_file_and_its_pixels_the_same_prediction(server):
    """The signature says text, so that MLflow's server makes text of the numbers."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    texts = [base64.b64encode(png(image)).decode() for image in pixels]
    status, expected = post(server, {"inputs": texts})
    assert status == 200 and expected["predictions"][0] != expected["predictions"][1]
    for images in (pixels, pixels.astype(float)):
        for key in ("inputs", "instances"):
            assert post(server, {key: images.tolist()}) == (200, expected)


def test_the_server_classifies_a_table_of_csv(server):
    body = f"id,image\n7,{encoded('red')}\n".encode()
    status, response = post(server, body, "text/csv")
    assert (status, response) == post(server, {"inputs": [encoded("red")]})


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": encoded("red")},
        {"inputs": {"id": [encoded("red")]}},
        {"dataframe_split": {"columns": ["id"], "data": [[encoded("red")]]}},
        {"dataframe_split": {"data": [[encoded("red")]]}},
    ],
    ids=["text", "inputs", "split", "no-columns"],
)
def test_the_server_refuses_a_table_without_the_column_image(server, body):
    status, response = post(server, body)
    assert status == 400
    assert "Model is missing inputs ['image']" in response["message"]


@pytest.mark.parametrize("image", ["not base64!", base64.b64encode(b"some text").decode()])
def test_the_server_responds_400_with_one_sentence(server, image):
    status, response = post(server, {"inputs": [image]})
    assert status == 400
    assert response["error_code"] == "INVALID_PARAMETER_VALUE"
    assert response["message"].startswith("The image is not") and "\n" not in response["message"]


def test_the_curl_call_of_the_readme_works(server, tmp_path):
    (tmp_path / "cat.png").write_bytes(make_image("red"))
    command = (
        """(printf '{"inputs": ["'; base64 < cat.png | tr -d '\\n'; printf '"]}') | """
        f"curl -s {server}/invocations -H 'Content-Type: application/json' -d @-"
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["predictions"][0]["version"] == 1
