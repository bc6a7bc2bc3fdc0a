"""The card of an upload, and the endpoint `/predict` of Gradio's API."""

import re
from typing import Any

import pytest
from support.page import call, data_url, get, post
from support.serving import expected_prediction, health, wait_until
from support.toys import make_image

from vitcifar.serving.app import Page, launch
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import classify, gradio_setup
from vitcifar.serving.server import MAX_SESSIONS


def test_the_card_is_empty_without_an_image_and_an_error_for_a_broken_version(colours, caplog):
    pool = ModelPool(colours, "champion")
    assert "No image yet" in classify.upload_card(pool, None, "")
    colours.broken.add(2)
    card = classify.upload_card(pool, None, "2")
    assert "card error" in card and "Version 2 cannot be loaded: choose another." in card
    assert "Version 2 was changed." in caplog.text, "the log of the server says why"


@pytest.fixture(scope="module")
def client(page: Page) -> Any:
    import gradio_client

    return gradio_client.Client(page.url, verbose=False, analytics_enabled=False)


def test_predict_is_the_one_named_endpoint(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert list(named) == ["/predict"]


@pytest.mark.parametrize("version", [1, 2])
def test_predict_returns_the_prediction_of_a_version(client, registry, digit, version):
    from gradio_client import handle_file

    response = client.predict(handle_file(str(digit)), str(version), api_name="/predict")
    prediction = expected_prediction(registry, version, digit)
    assert list(response) == [
        "label",
        "probabilities",
        "model",
        "version",
        "release_id",
        "out_of_distribution",
        "ood_score",
        "timing",
    ]
    assert (response["label"], response["version"], response["model"]) == (prediction.label, version, "toy")
    assert response["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)
    assert 0 < response["timing"]["inference_ms"] < response["timing"]["total_ms"]


@pytest.mark.parametrize(
    ("content", "version", "message"),
    [(b"no image", "champion", r"bad\.png is not a supported image"), (make_image(), "9", "no version '9'")],
    ids=["file", "version"],
)
def test_predict_reports_what_is_wrong_in_one_sentence(client, tmp_path, content, version, message):
    from gradio_client import handle_file

    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(Exception, match=message):
        client.predict(handle_file(str(tmp_path / "bad.png")), version, api_name="/predict")


def test_predict_downloads_nothing(client):
    web = {"path": "http://192.0.2.1/cat.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Exception, match="Send the image itself"):
        client.predict(web, "champion", api_name="/predict")


def run_directly(page: Page, data: list[Any]) -> str:
    return post(page, "run/predict", {"data": data})


def join_the_queue(page: Page, data: list[Any]) -> str:
    """The private function behind the page's card."""
    (function,) = (
        number for number, function in page._gradio_app.blocks.fns.items() if "upload_card" in str(function.fn)
    )
    session = f"forged-{len(str(data))}"
    post(page, "queue/join", {"data": data, "fn_index": function, "session_hash": session, "trigger_id": 1})
    messages = get(page, f"queue/data?session_hash={session}").splitlines()
    return next(message for message in messages if "process_completed" in message)


@pytest.mark.parametrize("route", [call, run_directly, join_the_queue])
@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["bare", "with meta"])
def test_no_other_file_of_the_server_is_opened(page, digit, meta, route):
    """gradio_client would upload the file; a forged request names one that lies on the server."""
    others = ["/proc/kmsg", "/dev/zero", str(digit.parent), str(digit.parent / "none.png"), str(digit)]
    answers = {
        re.sub(r"[0-9a-f-]{20,}|[0-9.]+", "", route(page, [{"path": path, **meta}, "champion"])) for path in others
    }
    assert len(answers) == 1, "a file that exists, a folder and a device are answered alike"
    predicted = re.compile('"label"|Most likely')
    assert not predicted.search(answers.pop())
    uploaded = gradio_setup.private_folder() / "uploads" / "digit.png"
    uploaded.parent.mkdir(exist_ok=True)
    uploaded.write_bytes(digit.read_bytes())
    answer = route(page, [{"path": str(uploaded)}, "champion"])
    assert "queue" in answer if route is run_directly else predicted.search(answer), "nothing passes the queue"


@pytest.mark.parametrize("upload", [{"path": "a/" * 200_000}, {"path": "x", "orig_name": "x://a:" * 50_000}])
def test_a_long_path_or_name_costs_nothing_and_is_not_repeated(page, upload):
    assert len(call(page, [upload, "champion"])) < 1000
    assert len(call(page, [None, "x://a:" * 50_000])) < 1000


def test_the_server_keeps_no_image_of_a_request(page, digit):
    content = data_url(digit.read_bytes())
    assert "label" in call(page, [{"path": None, "url": content}, "champion"])
    holder = page._gradio_app.state_holder
    assert holder.capacity == MAX_SESSIONS
    kept = [session.config_values for session in holder.session_data.values()]
    assert kept and content not in str(kept)
    name = "s" * (gradio_setup.MAX_SESSION_NAME + 1)
    body = {"component_id": 1, "fn_name": "live", "data": 0, "session_hash": name}
    post(page, "component_server", body)
    assert name not in holder.session_data
    body = {"data": [None, "champion"], "session_hash": name}
    assert "at most 64 characters" in post(page, "queue/join", body) and name not in post(page, "queue/join", body)


def test_visitors_read_no_address_and_no_path_of_the_server(colours, monkeypatch):
    secret = "The store http://ann:SECRET@db:5000 lost /home/ann/model.onnx."
    running = launch(colours, port=0, poll_seconds=0.05)
    try:
        for fault in ("unreachable", "broken"):
            if fault == "broken":
                colours.unreachable = False
                colours.broken.add(2)
                colours.aliases["champion"] = 2
            monkeypatch.setattr(colours, "sentence", secret)
            colours.unreachable = fault == "unreachable"
            wait_until(lambda: health(running)["problem"] != "", "the fault was not noticed")
            answers = [str(health(running)), call(running, [{"url": data_url(make_image())}, "2"])]
            answers += [call(running, [{"url": data_url(make_image())}, "9"])]
            for answer in answers:
                assert "SECRET" not in answer and "/home/ann" not in answer and "db:5000" not in answer
    finally:
        running.close()
