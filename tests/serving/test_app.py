"""The page: in real Chromium, through gradio_client and by plain requests; and the shelf of versions behind it."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from support.toys import Published, make_image, make_onnx

from vitcifar.errors import ImageError, RegistryError, ReleaseError, ServingError
from vitcifar.inference.session import OnnxClassifier, Prediction, Timing
from vitcifar.registry.registry import Version
from vitcifar.release.manifest import Manifest
from vitcifar.serving import html, layout, model_pool
from vitcifar.serving.app import Page, free_port, launch
from vitcifar.serving.middleware import MAX_REQUEST_BYTES, RequestGuard
from vitcifar.serving.model_pool import MAX_OPEN, ModelPool

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
SCREENSHOTS = Path(__file__).parents[2] / "screenshots"
in_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM} on this machine")


# The shelf, over a registry that breaks when told to


class FakeRegistry:
    """Versions of a toy model; `broken` ones raise on pull, `away` raises on everything."""

    model_name = "colours"

    def __init__(self, folder: Path, numbers: tuple[int, ...] = (1, 2)) -> None:
        self.folder = folder
        self.numbers = list(numbers)
        self.aliases: dict[str, int] = {"champion": 1}
        self.broken: set[int] = set()
        self.away = False
        self.pulled: list[int] = []

    def list(self) -> list[Version]:
        if self.away:
            raise RegistryError("The registry is away.")
        return [
            Version(
                model_name=self.model_name,
                number=number,
                aliases=tuple(sorted(alias for alias, held in self.aliases.items() if held == number)),
                status="READY",
                created="2026-01-01T00:00:00Z",
                run_id="",
                source="",
                tags={"test_accuracy": "0.875"},
            )
            for number in sorted(self.numbers, reverse=True)
        ]

    def resolve(self, spec: str | int) -> int:
        number = model_pool.holder(tuple(self.list()), str(spec))
        if number is None:
            raise RegistryError(f"colours has no version {spec!r}.")
        return number

    def pull(self, spec: str | int, **options: Any) -> Manifest:
        number = self.resolve(spec)
        self.pulled.append(number)
        if number in self.broken:
            raise ReleaseError(f"Version {number} was changed.")
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        make_onnx(folder / "model.onnx", release_id=f"toy{number}")
        return Manifest(
            release_id=f"toy{number}",
            model_name=self.model_name,
            class_names=("red", "green", "blue"),
            image_size=32,
            temperature=1.0,
            fingerprint="",
            run_id="",
            folder=folder,
            version=number,
        )


@pytest.fixture
def colours(tmp_path: Path) -> FakeRegistry:
    return FakeRegistry(tmp_path)


def make_pool(registry: Any, spec: str = "champion") -> ModelPool:
    return ModelPool(registry, spec)


def test_an_alias_that_moves_is_followed_and_said(colours):
    followed = make_pool(colours)
    assert followed.look().serial == 1, "nothing changed"
    colours.aliases["champion"] = 2
    state = followed.look()
    assert state.current.version == 2 and state.serial == 2
    assert "champion moved from version 1 to version 2" in state.moved
    assert followed.get("").version == followed.get("champion").version == 2


def test_a_new_version_is_listed_without_being_served(colours):
    followed = make_pool(colours)
    colours.numbers.append(3)
    assert followed.look().current.version == 1
    assert ("version 3", "3") in layout.choices(followed)


def test_latest_follows_the_newest_and_a_number_follows_nothing(colours):
    latest_number, pinned = make_pool(colours, "latest"), make_pool(colours, "1")
    colours.numbers.append(3)
    colours.aliases["champion"] = 3
    assert latest_number.look().current.version == 3
    assert pinned.look().current.version == 1


def test_a_broken_version_leaves_the_former_one_answering(colours):
    followed = make_pool(colours)
    colours.broken.add(2)
    colours.aliases["champion"] = 2
    state = followed.look()
    assert state.current.version == 1
    assert "version 2" in state.problem and "was changed" in state.problem and "goes on answering" in state.problem
    tries = len(colours.pulled)
    assert followed.look().problem == state.problem and len(colours.pulled) == tries, "it is not tried again at once"
    colours.aliases["champion"] = 1
    assert followed.look().problem == ""


def test_a_lost_alias_and_a_registry_away_leave_the_former_one_answering(colours):
    followed = make_pool(colours)
    del colours.aliases["champion"]
    assert "No version is champion any more" in followed.look().problem
    colours.away = True
    state = followed.look()
    assert state.current.version == 1 and "The registry is away. Version 1 goes on" in state.problem
    assert followed.get("").version == 1


def test_an_unknown_version_at_the_start_is_the_registrys_error(colours):
    with pytest.raises(RegistryError, match="challenger"):
        make_pool(colours, "challenger")


def test_a_chosen_version_is_opened_once_and_few_are_kept_open(tmp_path):
    registry = FakeRegistry(tmp_path, tuple(range(1, 8)))
    chosen = make_pool(registry)
    for number in range(1, 8):
        assert chosen.get(str(number)).version == number
        assert chosen.get(str(number)).release.release_id == f"toy{number}"
    assert registry.pulled == list(range(1, 8))
    assert len(chosen._open) == MAX_OPEN and 1 in chosen._open, "the one that is followed stays"


def test_the_thread_that_follows_needs_no_push(colours):
    followed = make_pool(colours)
    followed.follow(0.02)
    colours.aliases["champion"] = 2
    wait_until(lambda: followed.state.current.version == 2, "the alias was not followed")
    followed.close()


def wait_until(true: Any, failure: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, failure
        time.sleep(0.05)


# What is shown


def answer_of(*probabilities: float) -> Prediction:
    named = {f"class {index}": value for index, value in enumerate(probabilities)}
    timing = Timing(decode_ms=1, inference_ms=234.5, total_ms=1235.5)
    return Prediction(label="class 0", probabilities=named, release_id="toy", timing=timing)


def test_the_card_shows_five_classes_the_version_and_three_times(colours):
    followed = make_pool(colours)
    card = html.prediction(answer_of(0.6, 0.2, 0.1, 0.05, 0.04, 0.01), followed.get(""), followed.state)
    assert card.count("<li>") == 5 and "class 5" not in card
    assert "colours version 1" in card and "champion" in card
    assert "1.0 ms" in card and "234 ms" in card and "1,236 ms" in card


def test_names_from_outside_cannot_write_html(colours):
    followed = make_pool(colours)
    evil = Prediction(label="<script>", probabilities={"<script>": 1.0}, release_id="", timing=answer_of(1).timing)
    shown = (
        html.prediction(evil, followed.get(""), followed.state)
        + html.failure("<script>")
        + html.heading("<script>", ["<script>"])
    )
    assert "<script>" not in shown and shown.count("&lt;script&gt;") == 5


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100.0 %"), (0.9999, "> 99.9 %"), (0.0001, "< 0.1 %"), (0.0, "0.0 %")]
)
def test_a_percentage_never_rounds_to_certainty(value, text):
    assert html.percent(value) == text


def test_an_answer_below_the_threshold_says_so(colours):
    import dataclasses

    followed = make_pool(colours)
    opened = followed.get("")
    strict = dataclasses.replace(opened, release=dataclasses.replace(opened.release, threshold=0.9))
    assert "Not sure" in html.prediction(answer_of(0.8, 0.2), strict, followed.state)
    assert "Not sure" not in html.prediction(answer_of(0.95, 0.05), strict, followed.state)


def test_examples_are_those_that_the_release_carries(colours):
    opened = make_pool(colours).get("")
    assert layout.example_files(opened) == []
    folder = opened.release.path("examples")
    folder.mkdir()
    for name in ("b.png", "a.png", "text.txt"):
        (folder / name).write_bytes(make_image())
    copies = layout.example_files(opened)
    assert [file.name for file in copies] == ["a.png", "b.png"] and all(file.is_file() for file in copies)


# Ports and requests


def test_a_port_in_use_is_one_sentence_with_the_way_out(colours):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=rf"Port {port} on 127\.0\.0\.1 is in use: type --port {port + 1}"):
            launch(colours, port=port)
    assert colours.pulled == [], "nothing is opened for a page that cannot be served"


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_foreign_address_is_one_sentence(host):
    with pytest.raises(ServingError, match="no address of this machine"):
        free_port(host, 7860)


def test_port_0_takes_a_free_one():
    assert free_port("127.0.0.1", 0) > 1023


@pytest.mark.parametrize(
    ("host", "named", "known"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True),
        ("127.0.0.1", "localhost:7860", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "[::1]:7860", True),
        ("127.0.0.1", "my.name:7860", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example:7860", False),
        ("127.0.0.1", "192.0.2.1:7860", False),
        ("127.0.0.1", "", False),
        ("0.0.0.0", "192.0.2.1:7860", True),
        ("0.0.0.0", "evil.example:7860", False),
    ],
)
def test_the_page_answers_under_its_own_names_alone(host, named, known):
    assert RequestGuard(None, host=host, allowed_hosts=("my.name",)).knows(named) is known


@pytest.fixture(scope="module")
def page(published: Published) -> Iterator[Page]:
    """The page of the published toy, on a free port, looking at its registry five times a second."""
    from support.toys import settle

    from vitcifar.registry.registry import Registry

    with pytest.MonkeyPatch.context() as patch:
        settle(published.folder, patch)
        opened = Registry(published.model_name)
        served = launch(opened, port=0, poll_seconds=0.2)
        yield served
        served.close()


def health(page: Page) -> dict:
    with urllib.request.urlopen(f"{page.url}/health", timeout=10) as response:
        return json.load(response)


def test_health_says_which_version_answers(page):
    said = health(page)
    assert (said["status"], said["model"], said["version"], said["asked_for"]) == ("ok", "toy", 1, "champion")
    assert said["aliases"] == ["champion"] and said["problem"] == ""


def test_every_answer_forbids_other_sites(page):
    with urllib.request.urlopen(page.url, timeout=10) as response:
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["x-frame-options"] == "DENY" and response.headers["x-content-type-options"] == "nosniff"


def ask(page: Page, path: str, headers: dict[str, str], body: Any = None) -> int:
    connection = http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=20)
    try:
        connection.request("POST" if body else "GET", path, body, headers)
        return connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):  # refused before the whole body was sent
        return 413
    finally:
        connection.close()


def test_a_foreign_host_header_is_refused(page):
    assert ask(page, "/", {"Host": "evil.example"}) == 400
    assert ask(page, "/health", {"Host": "localhost:1"}) == 200


def test_a_request_that_is_too_large_is_refused(page):
    assert ask(page, "/gradio_api/run/predict", {"Content-Length": str(MAX_REQUEST_BYTES + 1)}, b"{") == 413
    chunks = (b"x" * 2**20 for _ in range(MAX_REQUEST_BYTES // 2**20 + 2))
    assert ask(page, "/gradio_api/run/predict", {"Transfer-Encoding": "chunked"}, chunks) == 413


def test_a_closed_page_answers_no_more_and_frees_its_port(colours):
    served = launch(colours, port=0)
    assert health(served)["model"] == "colours"
    served.close()
    with pytest.raises(OSError):
        health(served)
    free_port("127.0.0.1", urlsplit(served.url).port or 0)


def test_a_proxy_for_the_outside_does_not_stop_the_page(colours, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    served = launch(colours, port=0)
    assert ask(served, "/health", {}) == 200
    served.close()


def test_sigterm_ends_the_page_and_takes_the_uploaded_pictures_along(published, tmp_path):
    code = (
        "import threading\nfrom vitcifar import tracking\nfrom vitcifar.registry.registry import Registry\n"
        "from vitcifar.serving.app import launch\n"
        f"tracking.connect({published.uri!r})\npage = launch(Registry('toy'), port=0)\n"
        "threading.Timer(0.5, lambda: print(page.url, flush=True)).start()\npage.wait()\n"
    )
    environ = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TMPDIR": str(tmp_path),
        "VITCIFAR_CACHE": str(published.folder / "cache"),
    }
    with subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert list(tmp_path.glob("vitcifar-page-*"))
        process.terminate()
        assert process.wait(30) == 0
    assert not list(tmp_path.glob("vitcifar-page-*"))


# Programs


@pytest.fixture(scope="module")
def client(page: Page) -> Any:
    import gradio_client

    return gradio_client.Client(page.url, verbose=False, analytics_enabled=False)


@pytest.fixture
def digit(published: Published, tmp_path: Path) -> Path:
    """A real digit as a file."""
    Image.fromarray(published.splits.test.images[0]).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def expected(registry: Any, version: int, image: Path) -> Prediction:
    return OnnxClassifier(registry.pull(version).onnx_path).predict(image)


def test_predict_is_the_one_named_endpoint(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert list(named) == ["/predict"]


@pytest.mark.parametrize("version", [1, 2])
def test_predict_answers_programs(client, registry, digit, version):
    from gradio_client import handle_file

    said = client.predict(handle_file(str(digit)), str(version), api_name="/predict")
    answer = expected(registry, version, digit)
    assert said["label"] == answer.label and said["version"] == version and said["model"] == "toy"
    assert said["probabilities"] == pytest.approx(answer.probabilities, abs=1e-5)
    assert 0 < said["timing"]["inference_ms"] < said["timing"]["total_ms"]


@pytest.mark.parametrize(
    ("content", "version", "sentence"),
    [(b"no image", "champion", r"bad\.png is not an image"), (make_image(), "9", "no version '9'")],
    ids=["file", "version"],
)
def test_predict_says_in_one_sentence_what_is_wrong(client, tmp_path, content, version, sentence):
    from gradio_client import handle_file

    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(Exception, match=sentence):
        client.predict(handle_file(str(tmp_path / "bad.png")), version, api_name="/predict")


def test_predict_fetches_nothing_from_the_web(client):
    web = {"path": "http://192.0.2.1/cat.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Exception, match="Send the image itself"):
        client.predict(web, "champion", api_name="/predict")


def test_predict_reads_no_file_of_the_server(page, digit):
    """The client would upload it; this names an image that lies on the server, as only a forged request does."""
    data = [{"path": str(digit), "meta": {"_type": "gradio.FileData"}}, "champion"]
    body, headers = json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
    address = f"{page.url}/gradio_api/call/predict"
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=10) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{address}/{event}", timeout=10) as response:
        said = response.read().decode()
    assert "event: error" in said and "label" not in said


def test_a_picture_in_the_request_itself_is_answered(digit):
    import base64
    import types

    url = "data:image/png;base64," + base64.b64encode(digit.read_bytes()).decode()
    sent = layout.receive(types.SimpleNamespace(url=url, path=None, orig_name=None))
    assert isinstance(sent, layout.Sent) and sent.content == digit.read_bytes()
    broken = layout.receive(types.SimpleNamespace(url="data:image/png;base64,@@", path=None, orig_name="cat.png"))
    assert isinstance(broken, str) and broken.startswith("cat.png is not base64")


# People


@pytest.fixture
def tab(page: Page) -> Iterator[Any]:
    """A tab of real Chromium on the page; afterwards, nothing was asked of other hosts and nothing failed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        asked: list[str] = []
        errors: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(page.url)
        tab.wait_for_selector(".card.empty")
        yield tab
        browser.close()
    assert {urlsplit(url).netloc for url in asked if url.startswith("http")} == {urlsplit(page.url).netloc}
    assert errors == []


def upload(tab: Any, path: Path) -> None:
    tab.set_input_files("#image input[type=file]", str(path))


def screenshot(tab: Any, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    tab.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@in_chromium
def test_a_person_uploads_a_picture_and_reads_the_answer(tab, registry, digit):
    upload(tab, digit)
    tab.wait_for_selector(".card.answer")
    answer = expected(registry, 1, digit)
    assert tab.inner_text(".verdict b") == answer.label
    assert tab.inner_text(".verdict span") == html.percent(answer.probability)
    assert tab.locator(".bars .name").all_inner_texts() == list(answer.probabilities)[:5]
    assert "toy version 1" in tab.inner_text(".by") and "champion" in tab.inner_text(".by")
    assert tab.locator(".times dt").all_inner_texts() == ["Decode", "Inference", "Total"]
    assert all(text.endswith(" ms") for text in tab.locator(".times dd").all_inner_texts())
    screenshot(tab, "page")


@in_chromium
def test_a_person_switches_the_version(tab, registry, digit):
    upload(tab, digit)
    tab.wait_for_selector(".card.answer")
    tab.click("#choice input")
    tab.click("text='version 2'")
    tab.wait_for_selector(".by:has-text('toy version 2')")
    assert tab.inner_text(".verdict b") == expected(registry, 2, digit).label
    tab.wait_for_selector(".now:has-text('toy version 2')")
    assert "otherwise version 1 answers" in tab.inner_text(".now"), "the champion is still version 1"
    tab.click("#choice input")
    tab.click("text='champion (now version 1)'")
    tab.wait_for_selector(".by:has-text('toy version 1')")
    tab.wait_for_selector(".now:has-text('toy version 1')")
    assert "otherwise" not in tab.inner_text(".now")


@in_chromium
def test_a_person_sees_the_alias_move(tab, page, registry, digit):
    upload(tab, digit)
    tab.wait_for_selector(".card.answer")
    registry.move_alias("champion", 2, reason="better")
    tab.wait_for_selector(".by:has-text('toy version 2')", timeout=10_000)
    assert "champion moved from version 1 to version 2" in tab.inner_text(".note")
    assert tab.input_value("#choice input") == "champion (now version 2)"
    assert health(page)["version"] == 2
    registry.move_alias("champion", 1, reason="and back")
    tab.wait_for_selector(".by:has-text('toy version 1')", timeout=10_000)


@in_chromium
def test_a_person_reads_one_sentence_for_a_bad_file_and_goes_on(tab, digit, tmp_path):
    (tmp_path / "letter.png").write_text("Dear page,")
    upload(tab, tmp_path / "letter.png")
    tab.wait_for_selector(".card.failure")
    assert "letter.png is not an image" in tab.inner_text(".card.failure")
    assert "\n" not in tab.inner_text(".card.failure p:last-child")
    screenshot(tab, "page-bad-file")
    tab.click("#image button[aria-label='Remove Image'], #image button[aria-label='Clear']")
    tab.wait_for_selector(".card.empty")
    upload(tab, digit)
    tab.wait_for_selector(".card.answer")


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(tab, digit, scheme):
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.reload()
    tab.wait_for_selector(".card.empty")
    upload(tab, digit)
    tab.wait_for_selector(".card.answer")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    background = tab.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")
    screenshot(tab, f"page-phone-{scheme}")


@in_chromium
def test_a_person_clicks_an_example(colours, monkeypatch):
    from playwright.sync_api import sync_playwright

    pull = colours.pull

    def pull_with_example(spec: str, **options: Any) -> Manifest:
        release = pull(spec, **options)
        release.path("examples").mkdir(exist_ok=True)
        for colour in ("green", "blue"):
            (release.path("examples") / f"{colour}.png").write_bytes(make_image(colour))
        return release

    monkeypatch.setattr(colours, "pull", pull_with_example)
    served = launch(colours, port=0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        tab = browser.new_page()
        tab.goto(served.url)
        tab.click("#examples .gallery-item >> nth=1")
        tab.wait_for_selector(".card.answer")
        assert tab.inner_text(".verdict b") == "green"
        browser.close()
    served.close()


@in_chromium
def test_a_person_takes_a_picture_with_the_camera(tab):
    """Chromium's own test camera: a green image with a number that counts."""
    tab.click("#image button[aria-label='Capture from camera']")
    tab.click("text=Click to Access Webcam")
    # Before the camera's first image the button does nothing.
    tab.wait_for_function(
        "() => { const video = document.querySelector('#image video'); return video && video.videoWidth > 0"
        " && video.readyState >= 2 && video.currentTime > 0 }"
    )
    tab.click("#image button[aria-label='capture photo']")
    tab.wait_for_selector(".card.answer")


@in_chromium
def test_a_picture_can_be_pasted(tab):
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
    tab.wait_for_selector(".card.answer")


def test_a_card_of_a_broken_version_is_a_sentence(colours):
    followed = make_pool(colours)
    colours.broken.add(2)
    shown = layout.card(followed, None, "2")
    assert "failure" in shown and "Version 2 was changed." in shown
    with pytest.raises(ImageError):
        layout.respond(followed, "cat.png is not base64.", "")


def test_a_large_batch_of_questions_is_answered_by_one_version_each(colours):
    import concurrent.futures

    followed = make_pool(colours)
    sent = layout.Sent(make_image("blue"), "blue.png")

    def once(index: int) -> tuple[str, int | None]:
        if index == 20:
            colours.aliases["champion"] = 2
            followed.look()
        answer, opened = layout.respond(followed, sent, "")
        assert answer is not None and answer.release_id == opened.release.release_id
        return answer.label, opened.version

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(once, range(60)))
    assert {label for label, _ in answers} == {"blue"}
    assert {version for _, version in answers} == {1, 2}
    assert isinstance(followed.get("").classifier.logits([np.zeros((2, 2, 3), np.uint8)]), np.ndarray)
