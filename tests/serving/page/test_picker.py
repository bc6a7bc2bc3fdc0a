"""An image by every way that people have: a file, a drop, the clipboard, an example, a live camera."""

import base64
import io
import json
import re
from html import unescape as html_unescape
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.page import FILE_INPUT, data_url, post, screenshot, upload
from support.serving import expected_prediction, in_chromium, make_model
from support.toys import make_image

from vitcifar.data.image import MAX_BYTES
from vitcifar.release.manifest import Manifest
from vitcifar.serving.app import launch
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import html, picker

COPY = """async (size) => {
    const canvas = new OffscreenCanvas(size, size);
    canvas.getContext('2d').fillRect(0, 0, size, size);
    const blob = await canvas.convertToBlob({type: 'image/png'});
    await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
}"""


def decoded(address: str) -> Image.Image:
    """The image of a data: URL."""
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")


def shown(tab: Any) -> Image.Image:
    tab.wait_for_selector("#image img.shown[src^='data:']")
    return decoded(tab.get_attribute("#image img.shown", "src"))


def predicted(tab: Any) -> str:
    """The label on the card, once it is that of the latest image."""
    tab.wait_for_selector("#card:not(.busy) .card.prediction")
    return tab.inner_text(".verdict b")


def test_examples_are_the_images_in_the_release_with_their_classes(colours):
    model = ModelPool(colours, "champion").get("")
    assert picker.find_examples(model) == []
    folder = model.manifest.path("examples")
    folder.mkdir()
    for name in ("02.png", "01.png", "99.png", "text.txt"):
        (folder / name).write_bytes(make_image())
    found = picker.find_examples(model)
    assert [(example.file.name, example.class_name) for example in found] == [
        ("01.png", "green"),
        ("02.png", "blue"),
        ("99.png", ""),
    ]
    assert all(example.file.read_bytes() == make_image() for example in found)


def test_a_class_name_is_text_in_the_template(toy_onnx, tmp_path):
    """Gradio reads templates as HTML, Handlebars and JavaScript."""
    (tmp_path / "a.png").write_bytes(make_image())
    example = picker.Example(file=tmp_path / "a.png", class_name="<b>${1}{{2}}`\\")
    written = picker.template([example], make_model(toy_onnx), MAX_BYTES)
    assert not [part for part in ("<b>$", "${", "{{", "}}", "`", "\\") if part in written]
    assert html_unescape("".join(re.findall(r"<span>(.*?)</span>", written)[-1:])) == example.class_name


def test_what_is_no_upload_is_none_and_an_upload_keeps_its_name():
    assert picker.as_upload(None) is picker.as_upload("text") is None
    upload = picker.as_upload({"path": "/x", "orig_name": "cat.png", "serial": 3, "meta": {}})
    assert (upload.path, upload.url, upload.orig_name) == ("/x", None, "cat.png")
    with pytest.raises(ValueError):
        picker.as_upload({"path": ["/x"]})


@pytest.mark.parametrize("path", ["/etc/passwd", None, "a/" * 100_000])
def test_a_preview_shows_no_other_file_of_the_server(page, digit, path):
    (component,) = (b for b in page._gradio_app.blocks.blocks.values() if getattr(b, "elem_id", "") == "image")
    body = {"component_id": component._id, "session_hash": "forged", "fn_name": "preview", "data": {"path": path}}
    assert json.loads(post(page, "component_server", body)) == {"image": ""}
    body["data"] = {"url": data_url(digit.read_bytes())}
    assert json.loads(post(page, "component_server", body))["image"].startswith("data:image/png")


@in_chromium
def test_a_person_uploads_an_image_and_reads_the_prediction(tab, registry, digit):
    empty = tab.locator(".card").bounding_box()
    upload(tab, digit)
    prediction = expected_prediction(registry, 1, digit)
    assert predicted(tab) == prediction.label
    assert tab.inner_text(".verdict span") == html.percent(prediction.probability)
    first = tab.locator(".card > .bars .name").all_inner_texts()
    assert first == list(prediction.probabilities)[:5]
    tab.click(".others summary")
    assert first + tab.locator(".others .bars .name").all_inner_texts() == list(prediction.probabilities)
    assert "toy version 1" in tab.inner_text(".by") and "champion" in tab.inner_text(".by")
    assert tab.locator(".times dt").all_inner_texts() == ["Decode", "Inference", "Total"]
    assert all(text.endswith(" ms") for text in tab.locator(".times dd").all_inner_texts())
    assert "p50" in tab.inner_text(".recent") and tab.locator(".recent rect").count() >= 1
    tab.click(".others summary")
    assert tab.locator(".card").bounding_box() == empty, "nothing moves when the prediction comes"
    tab.wait_for_function(
        "label => document.querySelector('.spoken').textContent.includes(label)", arg=prediction.label
    )
    with tab.expect_file_chooser():  # with an image shown: nothing is lost until another is chosen
        tab.click(".tools .choose")
    assert predicted(tab) == prediction.label
    screenshot(tab, "page")


@in_chromium
def test_a_person_reads_one_sentence_for_a_bad_file_and_continues(tab, digit, tmp_path):
    (tmp_path / "letter.png").write_text("Dear page,")
    upload(tab, tmp_path / "letter.png")
    tab.wait_for_selector("#card:not(.busy) .card.error")
    assert "letter.png is not a supported image" in tab.inner_text(".card.error")
    assert "\n" not in tab.inner_text(".card.error p:last-child")
    assert tab.locator(".toast-wrap *").count() == 0
    screenshot(tab, "page-bad-file")
    first = tab.get_attribute(".card.error", "data-number")
    upload(tab, tmp_path / "letter.png")  # the same again is another answer
    tab.wait_for_selector(f"#card:not(.busy) .card.error:not([data-number='{first}'])")
    (tmp_path / "large.png").write_bytes(bytes(33 * 2**20))
    upload(tab, tmp_path / "large.png")
    tab.wait_for_selector(".picker-note:has-text('large.png has 33 MiB, more than 32')")
    tab.click(".tools .remove")
    tab.wait_for_selector(".card.empty")
    assert tab.evaluate("document.activeElement.textContent") != "", "the focus is not lost with the button"
    upload(tab, digit)
    tab.wait_for_selector(".card.prediction")
    assert not tab.is_visible(".picker-note")


@in_chromium
def test_what_is_shown_is_what_was_classified(tab, registry, tmp_path):
    """Every browser plays a GIF."""
    frames = [Image.new("RGB", (30, 30), colour) for colour in ("lime", "blue", "red")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:], duration=50)
    upload(tab, tmp_path / "moves.gif")
    label = expected_prediction(registry, 1, tmp_path / "moves.gif").label
    tab.wait_for_function("label => document.querySelector('.verdict b')?.textContent == label", arg=label)
    tab.wait_for_function("() => document.querySelector('#image img.shown').naturalWidth == 30")
    assert np.allclose(shown(tab).getpixel((3, 3)), (0, 255, 0), atol=2)


@in_chromium
def test_a_large_photo_is_reduced_in_the_browser_with_the_same_prediction(tab, registry, tmp_path):
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((3000, 2250), Image.Resampling.BICUBIC)
    grain = np.clip(np.asarray(blobs, np.int16) + rng.integers(-20, 20, (2250, 3000, 1), np.int16), 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright: turned by 90 degrees
    Image.fromarray(grain.astype(np.uint8)).save(tmp_path / "photo.jpg", quality=92, exif=exif)
    sizes: list[int] = []

    def record(request: Any) -> None:
        sizes.extend([len(request.post_data_buffer or b"")] if "upload" in request.url else [])

    tab.on("request", record)
    upload(tab, tmp_path / "photo.jpg")
    assert predicted(tab)
    expected = expected_prediction(registry, 1, tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").stat().st_size > 1e6 and max(sizes) < 6e5, "bytes sent"
    assert "sent as 768 × 1024 pixels" in tab.inner_text(".rate"), "upright"
    assert tab.inner_text(".verdict b") == expected.label
    assert float(tab.inner_text(".verdict span")[:-1]) / 100 == pytest.approx(expected.probability, abs=0.02)


@in_chromium
def test_a_person_clicks_an_example(colours, monkeypatch, chromium):
    pull = colours.pull

    def pull_with_examples(spec: str, **options: Any) -> Manifest:
        manifest = pull(spec, **options)
        manifest.path("examples").mkdir(exist_ok=True)
        for label, colour in enumerate(("red", "lime", "blue")):
            (manifest.path("examples") / f"{label:02}.png").write_bytes(make_image(colour))
        return manifest

    monkeypatch.setattr(colours, "pull", pull_with_examples)
    running = launch(colours, port=0)
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(running.url)
    tab.wait_for_selector(".card.empty")
    strip = tab.locator(".examples").bounding_box()
    assert tab.locator(".example").all_inner_texts() == ["red", "green", "blue"], "their true classes"
    tab.click(".example >> nth=1")
    assert predicted(tab) == "green"
    assert shown(tab).getpixel((0, 0)) == (0, 255, 0)
    assert tab.locator(".examples").bounding_box() == strip, "the strip does not jump"
    tab.close()
    running.close()


@in_chromium
def test_a_live_camera_is_classified_with_its_rate(tab, registry):
    """Chromium's own test camera: a green image with a number that counts."""
    tab.click(".tools .camera")
    tab.wait_for_selector(".rate:has-text('images/s')")
    first = tab.inner_text(".recent")
    assert tab.inner_text(".verdict b") in registry.pull(1).class_names
    tab.wait_for_function("text => document.querySelector('.recent').innerText != text", arg=first)
    screenshot(tab, "page-camera")
    tab.click(".tools .camera:has-text('Stop')")
    tab.wait_for_selector(".stage[data-state='image'] img.shown[src]")
    assert predicted(tab) in registry.pull(1).class_names, "the last frame stays"
    assert tab.evaluate("document.querySelector('#image video').srcObject") is None
    tab.click(".tools .camera")
    tab.wait_for_selector(".rate:has-text('images/s')")
    tab.click(".tools .remove")
    tab.wait_for_selector(".card.empty")
    assert tab.get_attribute(".stage", "data-state") == "empty"


@in_chromium
def test_without_a_camera_the_page_says_so(tab):
    for name, sentence in (("NotFoundError", "no camera"), ("NotAllowedError", "does not allow")):
        failing = f"async () => {{ throw new DOMException('', '{name}'); }}"
        tab.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {failing}; }}")
        tab.click(".tools .camera")
        tab.wait_for_selector(f".picker-note:has-text('{sentence}')")
        assert tab.inner_text(".tools .camera") == "Camera"


@in_chromium
def test_an_image_is_pasted_by_the_button_and_by_the_keyboard(tab, registry, tmp_path):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.evaluate(COPY, 20)
    tab.focus("#version select")
    tab.keyboard.press("Control+V")
    (tmp_path / "black.png").write_bytes(make_image("black", (20, 20)))
    assert predicted(tab) == expected_prediction(registry, 1, tmp_path / "black.png").label
    tab.click(".tools .remove")
    tab.wait_for_selector(".card.empty")
    tab.click(".tools .paste")
    assert predicted(tab)
    tab.evaluate("navigator.clipboard.writeText('text')")
    tab.click(".tools .paste")
    tab.wait_for_selector(".picker-note:has-text('holds no image')")
    assert tab.locator(FILE_INPUT).count() == 1
