"""`POST /v1/feedback`: what is stored, what is refused, and who may send it."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from support.serving import FakeRegistry
from support.toys import make_image

from vitcifar.data.dataset import pixel_hash
from vitcifar.data.image import read_image
from vitcifar.serving import feedback
from vitcifar.serving.app import Page, launch
from vitcifar.serving.feedback import FeedbackStore

RED = make_image("red")
PATH = "/v1/feedback"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('feedback')}/feedback.db"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Page]:
    registry = FakeRegistry(tmp_path_factory.mktemp("colours"))
    running = launch(registry, port=0, page=False, poll_seconds=1e6, feedback=url)  # type: ignore[arg-type]
    yield running
    running.close()


def sent(image: bytes = RED) -> dict[str, Any]:
    return {"files": {"image": ("image.png", image)}}


def test_an_answer_names_the_prediction_and_is_stored(client, url):
    response = client.post(PATH, params={"verdict": "wrong", "truth": "blue", "version": "2"}, **sent())
    assert response.status_code == 200, response.text
    row = response.json()
    hash_ = pixel_hash(read_image(RED))
    assert (row["new"], row["label"], row["truth"], row["version"], row["image_hash"]) == (
        *(True, "red", "blue", 2),
        hash_,
    )
    (entry,) = FeedbackStore(url).entries("colours")
    assert (entry.truth, entry.source, entry.has_image, entry.release_digest) == (
        *("blue", "rest", True),
        row["release_digest"],
    )
    again = client.post(
        PATH,
        params={"verdict": "wrong", "truth": "blue", "version": "2"},
        json={"image": base64.b64encode(make_image("red", kind="BMP")).decode()},  # another file, the same pixels
    )
    assert again.json()["new"] is False


def test_right_needs_no_class_and_the_image_is_kept_only_if_it_may_be(client, url):
    green = make_image("green", (9, 9))
    headers = {"Content-Type": "image/png"}
    response = client.post(PATH, params={"verdict": "right", "keep_image": "no"}, content=green, headers=headers)
    assert (response.json()["truth"], response.json()["version"]) == ("green", 1)
    (entry,) = [one for one in FeedbackStore(url).entries("colours") if one.label == "green"]
    assert not entry.has_image


@pytest.mark.parametrize(
    ("params", "request_", "status", "sentence"),
    [
        ({}, sent(), 422, "verdict: field required"),
        ({"verdict": "maybe"}, sent(), 422, "'right' or 'wrong'"),
        ({"verdict": "wrong", "truth": "cat"}, sent(), 422, "'cat' is no class of colours version 1"),
        ({"verdict": "wrong", "truth": "red"}, sent(), 422, "mark it as right"),
        ({"verdict": "right", "version": "9"}, sent(), 404, "There is no version '9'"),
        ({"verdict": "right"}, sent(b"no image"), 422, "image.png is not a supported image"),
        ({"verdict": "right"}, {"json": {"images": ["a", "b"]}}, 422, "send one for each feedback"),
        ({"verdict": "right"}, {"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "is no image"),
    ],
    ids=range(8),
)
def test_what_cannot_be_stored_is_a_status_and_one_sentence(client, url, params, request_, status, sentence):
    before = FeedbackStore(url).entries("colours")
    response = client.post(PATH, params=params, **request_)
    assert response.status_code == status and sentence in response.json()["detail"], response.text
    assert FeedbackStore(url).entries("colours") == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=strategies.binary(max_size=300),
    kind=strategies.sampled_from(["multipart/form-data; boundary=b", "application/json", "image/png", "x/y"]),
    truth=strategies.text(max_size=50),
)
def test_any_body_and_any_class_is_answered_with_one_sentence(client, body, kind, truth):
    params = {"verdict": "wrong", "truth": truth}
    response = client.post(PATH, params=params, content=body, headers={"Content-Type": kind})
    assert response.status_code in (415, 422)
    assert isinstance(response.json()["detail"], str)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://behind.a.proxy"}, 200),
        ({"Origin": "http://{host}"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"}, 403),  # another port of this machine
        ({"Origin": "http://evil.example"}, 403),  # to a server without https, browsers send Origin alone
        ({"Origin": "null"}, 403),
    ],
    ids=range(7),
)
def test_a_foreign_web_page_cannot_send_feedback_by_a_visitors_browser(client, url, headers, status):
    before = len(FeedbackStore(url).entries("colours"))
    sent_headers = {name: value.format(host=client.base_url.netloc.decode()) for name, value in headers.items()}
    image = make_image("blue", (5, 20 + before))  # a new one
    response = client.post(PATH, params={"verdict": "right"}, headers=sent_headers, **sent(image))
    assert response.status_code == status, response.text
    assert len(FeedbackStore(url).entries("colours")) == before + (status == 200)


def test_a_full_or_broken_store_is_said_without_its_address(client, monkeypatch, server, url):
    monkeypatch.setattr(feedback, "MAX_ENTRIES", 0)
    response = client.post(PATH, params={"verdict": "right"}, **sent())
    assert response.status_code == 507 and "is full" in response.json()["detail"]
    monkeypatch.undo()
    path = Path(url.removeprefix("sqlite:///"))
    path.rename(path.with_suffix(".away"))
    try:
        path.write_text("no database " * 100)
        response = client.post(PATH, params={"verdict": "right"}, **sent(make_image("blue")))
    finally:
        path.with_suffix(".away").replace(path)
    assert response.status_code == 503
    assert response.json()["detail"] == "The feedback cannot be stored now: send it again later."


def test_with_a_password_feedback_wants_it_and_without_a_store_there_is_none(tmp_path):
    options: dict[str, Any] = {"port": 0, "page": False}
    running = launch(
        FakeRegistry(tmp_path),
        passwords={"ann": "right"},
        feedback=f"sqlite:///{tmp_path}/feedback.db",
        **options,  # type: ignore[arg-type]
    )
    try:
        for auth, status in ((None, 401), (("ann", "wrong"), 401), (("ann", "right"), 200)):
            response = httpx.post(
                running.url + PATH, params={"verdict": "right"}, auth=auth, trust_env=False, timeout=20, **sent()
            )
            assert response.status_code == status
    finally:
        running.close()
    running = launch(FakeRegistry(tmp_path), **options)  # type: ignore[arg-type]
    try:
        response = httpx.post(running.url + PATH, params={"verdict": "right"}, trust_env=False, **sent())
        assert response.status_code == 404
    finally:
        running.close()
