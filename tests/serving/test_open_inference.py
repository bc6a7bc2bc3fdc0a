"""The Open Inference Protocol: metadata, tensors in JSON and in binary, and errors in its form."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from support.toys import make_image

from vitcifar.inference.session import OnnxClassifier

RED, BLUE = make_image("red"), make_image("blue")
MODEL = "/v2/models/colours"
PIXELS = np.stack([np.full((4, 5, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255))])


def tensor(**fields: Any) -> dict[str, Any]:
    texts = [base64.b64encode(content).decode() for content in (RED, BLUE)]
    return {"name": "image", "datatype": "BYTES", "shape": [2], "data": texts, **fields}


def outputs(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output for output in response.json()["outputs"]}


def test_health_and_metadata_are_in_the_form_of_the_protocol(client):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get(f"{MODEL}/ready").json() == {"name": "colours", "ready": True}
    assert client.get(f"{MODEL}/versions/2/ready").json() == {"name": "colours", "ready": True}
    described = client.get(f"{MODEL}/versions/2").json()
    assert (described["name"], described["versions"]) == ("colours", ["2", "1"])
    assert described["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in described["outputs"]] == ["label", "probabilities", "class_names"]


def binary(data: bytes, **fields: Any) -> dict[str, Any]:
    """A request in which the tensor follows the JSON, as the binary extension sends it."""
    head = {**tensor(**fields), "parameters": {"binary_data_size": len(data)}}
    del head["data"]
    text = json.dumps({"inputs": [head]}).encode()
    return {"content": text + data, "headers": {"Inference-Header-Content-Length": str(len(text))}}


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {"inputs": [tensor()]}},
        {"json": {"inputs": [tensor(datatype="UINT8", shape=[2, 4, 5, 3], data=PIXELS.tolist())]}},
        {"json": {"inputs": [tensor(datatype="UINT8", shape=[2, 4, 5, 3], data=PIXELS.ravel().tolist())]}},
        binary(b"".join(len(content).to_bytes(4, "little") + content for content in (RED, BLUE))),
        binary(PIXELS.tobytes(), datatype="UINT8", shape=[2, 4, 5, 3]),
    ],
    ids=["bytes", "nested", "flat", "binary bytes", "binary pixels"],
)
def test_images_are_classified_in_every_form_of_a_tensor(server, client, request_):
    response = client.post(f"{MODEL}/versions/2/infer", **request_)
    answered = outputs(response)
    assert response.json()["model_version"] == "2"
    assert answered["label"] == {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["red", "blue"]}
    expected = OnnxClassifier(server.pool.registry.pull(2).onnx_path).predict(RED).probabilities
    by_class = dict(zip(answered["class_names"]["data"], answered["probabilities"]["data"], strict=False))
    assert answered["probabilities"]["shape"] == [2, 3] and by_class == pytest.approx(expected, abs=1e-6)


def test_the_id_and_the_outputs_that_were_asked_for_come_back(server, client, monkeypatch):
    monkeypatch.setitem(vars(server.pool.state.current.manifest), "threshold", 0.5)
    query = {"id": "7", "inputs": [tensor()], "outputs": [{"name": "confident"}]}
    response = client.post(f"{MODEL}/infer", json=query)
    assert response.json()["id"] == "7" and response.json()["model_version"] == "1"
    assert list(outputs(response)) == ["confident"] and outputs(response)["confident"]["data"] == [True, True]


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/v2/models/other/infer", {"inputs": [tensor()]}, 404, "There is no model 'other'"),
        (f"{MODEL}/versions/9/infer", {"inputs": [tensor()]}, 404, "There is no version '9'"),
        (f"{MODEL}/infer", {"inputs": []}, 400, "JSON with one tensor"),
        (f"{MODEL}/infer", {"inputs": [tensor(shape=["x"])]}, 400, "JSON with one tensor"),
        (f"{MODEL}/infer", {"inputs": [tensor(parameters=1)]}, 400, "JSON with one tensor"),
        (f"{MODEL}/infer", {"inputs": [tensor()], "id": 7}, 400, "JSON with one tensor"),
        (f"{MODEL}/infer", {"inputs": [tensor()], "id": "\ud800"}, 400, "JSON with one tensor"),
        (f"{MODEL}/infer", {"inputs": [tensor(shape=[3])]}, 400, r"of shape [3] has 2 images"),
        (f"{MODEL}/infer", {"inputs": [tensor(data=["@", "@"])]}, 400, "Image 1 is not base64"),
        (f"{MODEL}/infer", {"inputs": [tensor(data=[1, 2])]}, 400, "has no base64 text"),
        (f"{MODEL}/infer", {"inputs": [tensor(datatype="FP32")]}, 400, "as BYTES, or pixels as UINT8"),
        (f"{MODEL}/infer", {"inputs": [tensor(datatype="UINT8", shape=[1, 1, 1, 3], data=[1, 2])]}, 400, "the shape"),
        (f"{MODEL}/infer", {"inputs": [tensor(datatype="UINT8", shape=[1, 1, 3], data=[1, 2, 256])]}, 400, "0 to 255"),
        (f"{MODEL}/infer", {"inputs": [tensor(datatype="UINT8", shape=[0, 1, 1, 3], data=[])]}, 400, "has 0 images"),
        (f"{MODEL}/infer", {"inputs": [tensor(shape=[101], data=["QQ=="] * 101)]}, 400, "more than 100 images"),
    ],
    ids=range(15),
)
def test_an_error_is_one_sentence_in_the_form_of_the_protocol(client, path, body, status, sentence):
    content = json.dumps(body)  # httpx would not escape half a character
    response = client.post(path, content=content)
    assert response.status_code == status
    assert list(response.json()) == ["error"] and sentence in response.json()["error"]
