"""`/v1/predict`: every form of a request, its rows, its limits and its errors."""

import base64
import hashlib
import queue
from typing import Any

import httpx
import pytest
from support.serving import FakeRegistry
from support.toys import make_image

from vitcifar.inference.session import OnnxClassifier
from vitcifar.serving import decoder as decoding
from vitcifar.serving.app import launch
from vitcifar.serving.middleware import MAX_REQUEST_BYTES
from vitcifar.serving.rest import MAX_IMAGES

RED, BLUE = make_image("red"), make_image("blue")
TEXT = base64.b64encode(RED).decode()
PATH = "/v1/predict"


def sent_as(form: str) -> dict[str, Any]:
    return {
        "form": {"files": [("any", ("red.png", RED))]},
        "body": {"content": RED, "headers": {"Content-Type": "image/png"}},
        "octets": {"content": RED, "headers": {"Content-Type": "application/octet-stream"}},
        "json": {"json": {"images": [TEXT]}},
        "one": {"json": {"image": f"data:image/png;base64,{TEXT}"}},
        "list": {"json": [TEXT]},
    }[form]


def tensor_of(text: str) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}]}


@pytest.mark.parametrize("form", ["form", "body", "octets", "json", "one", "list"])
def test_an_image_is_classified_in_every_form(client, form):
    response = client.post(PATH, **sent_as(form))
    assert response.status_code == 200
    (row,) = response.json()["predictions"]
    assert row["label"] == "red" and row["name"] == ("red.png" if form == "form" else "The image")


def test_a_prediction_equals_the_one_without_a_server_and_names_what_answered(server, client):
    (row,) = client.post(PATH, params={"version": "2"}, **sent_as("form")).json()["predictions"]
    release = server.pool.registry.pull(2)
    expected = OnnxClassifier(release.onnx_path).predict(RED)
    assert row["probabilities"] == expected.probabilities
    assert (row["model"], row["version"], row["alias"], row["release_id"]) == ("colours", 2, None, "toy2")
    assert row["release_digest"] == hashlib.sha256(release.path("release.json").read_bytes()).hexdigest()
    timing = row["timing"]
    assert min(timing.values()) > 0
    assert timing["total_ms"] >= timing["queue_ms"] + timing["decode_ms"] + timing["inference_ms"]


@pytest.mark.parametrize(
    ("spec", "version", "alias"), [("", 1, "champion"), ("@champion", 1, "champion"), ("v2", 2, None)]
)
def test_the_alias_that_was_asked_for_is_named(client, spec, version, alias):
    (row,) = client.post(PATH, params={"version": spec}, **sent_as("body")).json()["predictions"]
    assert (row["version"], row["alias"]) == (version, alias)


def test_one_bad_file_among_many_is_an_error_in_its_own_row(client):
    files = [("image", (name, content)) for name, content in (("a.png", RED), ("b.txt", b"no"), ("c.png", BLUE))]
    red, bad, blue = client.post(PATH, files=files, params={"top_k": 1}).json()["predictions"]
    assert bad == {"name": "b.txt", "error": bad["error"]} and bad["error"].startswith("b.txt is not a supported image")
    assert [list(row["probabilities"]) for row in (red, blue)] == [["red"], ["blue"]]
    rows = client.post(PATH, json={"images": ["@@", TEXT]}).json()["predictions"]
    assert rows[0]["error"].startswith("Image 1 is not base64") and rows[1]["label"] == "red"


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (PATH, sent_as("form")),
        ("/v2/models/colours/infer", {"json": tensor_of(TEXT)}),
        ("/invocations", {"json": {"inputs": [TEXT]}}),
    ],
)
def test_an_image_for_which_no_decoder_is_free_is_not_blamed(client, monkeypatch, path, request_):
    monkeypatch.setattr(decoding, "START_SECONDS", 0.01)
    monkeypatch.setattr(decoding, "decoders", lambda: idle)
    (idle := queue.LifoQueue()).put(decoding.Decoder())
    response = client.post(path, **request_)
    assert response.status_code == 503 and "send it again in a moment" in response.text


def test_a_prediction_says_whether_it_is_confident(server, client, monkeypatch):
    for threshold, confident in ((0.0, None), (0.5, True), (None, False)):
        monkeypatch.setitem(vars(server.pool.state.current.manifest), "threshold", threshold)
        assert client.post(PATH, **sent_as("form")).json()["predictions"][0]["confident"] is confident


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        ({"content": b"no", "headers": {"Content-Type": "image/png"}}, 422, "The image is not a supported image"),
        ({"content": b"", "headers": {"Content-Type": "image/png"}}, 422, "There is no image in the request"),
        ({"content": b"a", "headers": {"Content-Type": "text/plain"}}, 415, "content type 'text/plain' is no image"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 422, "The body is not JSON"),
        ({"content": b"[" * 99999, "headers": {"Content-Type": "application/json"}}, 422, "The body is not JSON"),
        ({"json": {"images": [1]}}, 422, "The JSON has no base64 text"),
        ({"json": {"images": []}}, 422, "There is no image in the request"),
        ({"json": {"images": [TEXT] * (MAX_IMAGES + 1)}}, 422, "101 images in the request, the limit is 100"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 422, "The form cannot be read"),
        ({"files": {"a": RED}, "params": {"top_k": "x"}}, 422, "top_k: input should be a valid integer"),
        ({"files": {"a": RED}, "params": {"version": "9"}}, 404, "There is no version '9': choose one of 2, 1"),
        (
            {"content": b"x" * (MAX_REQUEST_BYTES + 1), "headers": {"Content-Type": "image/png"}},
            413,
            "larger than 16 MiB",
        ),
        (
            {"content": make_image("red", size=(8000, 7000)), "headers": {"Content-Type": "image/png"}},
            422,
            "50,000,000",
        ),
    ],
    ids=range(13),
)
def test_what_cannot_be_answered_is_a_status_and_one_sentence(client, request_, status, sentence):
    response = client.post(PATH, **request_)
    assert response.status_code == status
    assert sentence in response.json()["detail"]


def test_a_version_that_cannot_be_loaded_is_503_and_its_paths_stay_in_the_log(server, client):
    server.pool.registry.numbers.append(3)
    server.pool.registry.broken.add(3)
    server.pool.registry.sentence = "/secret/path was changed."
    server.pool.refresh()
    response = client.post(PATH, params={"version": "3"}, **sent_as("form"))
    assert response.status_code == 503 and response.json()["detail"] == "Version 3 cannot be loaded: choose another."


def test_with_a_password_the_api_wants_it_and_health_does_not(tmp_path):
    running = launch(FakeRegistry(tmp_path), port=0, page=False, passwords={"ann": "right"})
    try:
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert httpx.get(running.url + path, trust_env=False).status_code == 401
        response = httpx.post(running.url + PATH, trust_env=False, **sent_as("form"))
        assert response.status_code == 401 and response.headers["www-authenticate"].startswith("Basic")
        response = httpx.post(running.url + PATH, trust_env=False, auth=("ann", "wrong"), **sent_as("form"))
        assert response.status_code == 401
        response = httpx.post(running.url + PATH, trust_env=False, auth=("ann", "right"), **sent_as("form"))
        assert response.status_code == 200
        assert httpx.get(running.url + "/health/ready", trust_env=False).status_code == 200
    finally:
        running.close()
