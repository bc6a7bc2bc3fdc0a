"""The page and its API: uploads, examples, `/predict` through gradio_client, and people in Chromium."""

import base64
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.project import ROOT
from support.serving import CHROMIUM, FLAGS, expected_prediction, health, in_chromium, wait_until
from support.toys import make_image

from vitcifar.errors import ImageError
from vitcifar.release.manifest import Manifest
from vitcifar.serving.app import Page, launch
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import classify, gradio_setup, html, layout, uploads
from vitcifar.serving.server import MAX_SESSIONS

SCREENSHOTS = ROOT / "screenshots"


def upload_of(**fields: Any) -> Any:
    """What Gradio passes for an upload."""
    return SimpleNamespace(**{"path": None, "url": None, "orig_name": None, **fields})


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_an_image_inside_the_request_is_classified(colours):
    pool = ModelPool(colours, "champion")
    prediction, model = uploads.predict_upload(pool, upload_of(url=data_url(make_image("green"))), "2")
    assert prediction is not None and prediction.label == "green" and model.version == 2
    with pytest.raises(ImageError, match=r"^cat\.png is not base64"):
        uploads.predict_upload(pool, upload_of(url="data:image/png;base64,@@", orig_name="cat.png"), "")


def test_only_files_in_the_folder_of_the_page_are_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(make_image())
    uploaded = gradio_setup.private_folder() / "red.png"
    uploaded.write_bytes(make_image())
    link = gradio_setup.private_folder() / "link.png"
    link.symlink_to(tmp_path / "secret.png")
    assert uploads.read_upload(upload_of(path=str(uploaded)), "red.png") == uploaded
    for path in (tmp_path / "secret.png", link, gradio_setup.private_folder() / ".." / "secret.png", "", None):
        with pytest.raises(ImageError, match=r"^red\.png was not uploaded"):
            uploads.read_upload(upload_of(path=path and str(path)), "red.png")


def test_the_card_is_empty_without_an_image_and_an_error_for_a_broken_version(colours, caplog):
    pool = ModelPool(colours, "champion")
    assert "No image yet" in classify.upload_card(pool, None, "")
    colours.broken.add(2)
    card = classify.upload_card(pool, None, "2")
    assert "card error" in card and "Version 2 cannot be loaded: choose another." in card
    assert "Version 2 was changed." in caplog.text, "the log of the server says why"


def test_the_version_list_starts_with_the_default_then_the_newest(colours):
    pool = ModelPool(colours, "champion")
    assert layout.version_choices(pool) == [
        ("champion (now version 1)", "champion"),
        ("version 2", "2"),
        ("version 1 · champion", "1"),
    ]
    assert len(layout.version_choices(ModelPool(colours, "2"))) == 2


def test_examples_are_the_images_in_the_release(colours):
    model = ModelPool(colours, "champion").get("")
    assert classify.example_files(model) == []
    folder = model.manifest.path("examples")
    folder.mkdir()
    for name in ("b.png", "a.png", "text.txt"):
        (folder / name).write_bytes(make_image())
    copies = classify.example_files(model)
    assert [file.name for file in copies] == ["a.png", "b.png"] and all(file.is_file() for file in copies)


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
    assert list(response) == ["label", "probabilities", "model", "version", "release_id", "timing"]
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


def post(page: Page, path: str, body: dict[str, Any]) -> str:
    """The body of the response, of an error too."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{page.url}/gradio_api/{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def get(page: Page, path: str) -> str:
    with urllib.request.urlopen(f"{page.url}/gradio_api/{path}", timeout=20) as response:
        return response.read().decode()


def call(page: Page, data: list[Any]) -> str:
    return get(page, f"call/predict/{json.loads(post(page, 'call/predict', {'data': data}))['event_id']}")


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
    assert "string_too_long" in post(page, "queue/join", {"data": [None, "champion"], "session_hash": name})


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


def upload(tab: Any, path: Path) -> None:
    tab.set_input_files("#image input[type=file]", str(path))


def screenshot(tab: Any, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    tab.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@in_chromium
def test_a_person_uploads_an_image_and_reads_the_prediction(tab, registry, digit):
    upload(tab, digit)
    tab.wait_for_selector(".card.prediction")
    prediction = expected_prediction(registry, 1, digit)
    assert tab.inner_text(".verdict b") == prediction.label
    assert tab.inner_text(".verdict span") == html.percent(prediction.probability)
    assert tab.locator(".bars .name").all_inner_texts() == list(prediction.probabilities)[:5]
    assert "toy version 1" in tab.inner_text(".by") and "champion" in tab.inner_text(".by")
    assert tab.locator(".times dt").all_inner_texts() == ["Decode", "Inference", "Total"]
    assert all(text.endswith(" ms") for text in tab.locator(".times dd").all_inner_texts())
    screenshot(tab, "page")


@in_chromium
def test_a_person_selects_another_version(tab, registry, digit):
    upload(tab, digit)
    tab.wait_for_selector(".card.prediction")
    tab.click("#version input")
    tab.click("text='version 2'")
    tab.wait_for_selector(".by:has-text('toy version 2')")
    assert tab.inner_text(".verdict b") == expected_prediction(registry, 2, digit).label
    tab.wait_for_selector("#status .now:has-text('toy version 2')")
    assert "version 1 is the default" in tab.inner_text("#status .now"), "the champion is still version 1"
    tab.click("#version input")
    tab.click("text='champion (now version 1)'")
    tab.wait_for_selector(".by:has-text('toy version 1')")
    tab.wait_for_selector("#status .now:has-text('toy version 1')")
    assert "default" not in tab.inner_text("#status .now")


@in_chromium
def test_a_person_sees_the_alias_move(tab, page, registry, digit):
    upload(tab, digit)
    tab.wait_for_selector(".card.prediction")
    registry.client.set_registered_model_alias("toy", "champion", "2")
    tab.wait_for_selector(".by:has-text('toy version 2')", timeout=10_000)
    assert "champion moved from version 1 to version 2" in tab.inner_text(".note")
    assert tab.input_value("#version input") == "champion (now version 2)"
    assert health(page)["version"] == 2
    registry.client.set_registered_model_alias("toy", "champion", "1")
    tab.wait_for_selector(".by:has-text('toy version 1')", timeout=10_000)


@in_chromium
def test_a_person_reads_one_sentence_for_a_bad_file_and_continues(tab, digit, tmp_path):
    (tmp_path / "letter.png").write_text("Dear page,")
    upload(tab, tmp_path / "letter.png")
    tab.wait_for_selector(".card.error")
    assert "letter.png is not a supported image" in tab.inner_text(".card.error")
    assert "\n" not in tab.inner_text(".card.error p:last-child")
    screenshot(tab, "page-bad-file")
    tab.click("#image button[aria-label='Remove Image'], #image button[aria-label='Clear']")
    tab.wait_for_selector(".card.empty")
    upload(tab, digit)
    tab.wait_for_selector(".card.prediction")


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(tab, digit, scheme):
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.reload()
    tab.wait_for_selector(".card.empty")
    upload(tab, digit)
    tab.wait_for_selector(".card.prediction")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    background = tab.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")
    screenshot(tab, f"page-phone-{scheme}")


@in_chromium
def test_a_person_clicks_an_example(colours, monkeypatch):
    from playwright.sync_api import sync_playwright

    pull = colours.pull

    def pull_with_example(spec: str, **options: Any) -> Manifest:
        manifest = pull(spec, **options)
        manifest.path("examples").mkdir(exist_ok=True)
        for colour in ("green", "blue"):
            (manifest.path("examples") / f"{colour}.png").write_bytes(make_image(colour))
        return manifest

    monkeypatch.setattr(colours, "pull", pull_with_example)
    running = launch(colours, port=0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        tab = browser.new_page()
        tab.goto(running.url)
        tab.click("#examples .gallery-item >> nth=1")
        tab.wait_for_selector(".card.prediction")
        assert tab.inner_text(".verdict b") == "green"
        browser.close()
    running.close()


@in_chromium
def test_a_person_takes_an_image_with_the_camera(tab, registry):
    """Chromium's own test camera: a green image with a number that counts."""
    tab.click("#image button[aria-label='Capture from camera']")
    tab.click("text=Click to Access Webcam")
    # Before the camera's first image the button does nothing.
    tab.wait_for_function(
        "() => { const video = document.querySelector('#image video'); return video && video.videoWidth > 0"
        " && video.readyState >= 2 && video.currentTime > 0 }"
    )
    tab.click("#image button[aria-label='capture photo']")
    tab.wait_for_selector(".card.prediction")
    assert tab.inner_text(".verdict b") in registry.pull(1).class_names


@in_chromium
def test_an_image_can_be_pasted(tab, registry, tmp_path):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(20, 20);
            canvas.getContext('2d').fillRect(0, 0, 20, 20);
            const blob = await canvas.convertToBlob({type: 'image/png'});
            await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
        }"""
    )
    tab.click("#image button[aria-label='Paste from clipboard'], #image button[aria-label='Paste from Clipboard']")
    tab.wait_for_selector(".card.prediction")
    (tmp_path / "black.png").write_bytes(make_image("black", (20, 20)))
    assert tab.inner_text(".verdict b") == expected_prediction(registry, 1, tmp_path / "black.png").label
