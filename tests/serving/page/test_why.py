"""The parts that a prediction rests on, drawn over the image when a person asks."""

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.serving import in_chromium
from support.toys import make_image

from vitcifar.data.image import read_image
from vitcifar.inference.occlusion import occlude
from vitcifar.inference.session import OnnxClassifier
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import why


def upload_of(content: bytes) -> Any:
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    return type("Upload", (), {"path": None, "url": url, "orig_name": "cat.png"})()


def drawn(html: str) -> np.ndarray:
    found = re.search('data:image/png;base64,([^"]+)"', html)
    assert found
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))


def test_the_part_with_the_evidence_is_the_orange_one(colours):
    image = np.full((70, 70, 3), 128, np.uint8)
    image[10:20, 50:60] = (0, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    shown = why.why(ModelPool(colours, "champion"), True, upload_of(buffer.getvalue()), "")
    pixels = drawn(shown).astype(int)
    assert max(pixels.shape) == why.LONGEST_SIDE
    plain = np.asarray(Image.fromarray(image).resize(pixels.shape[1::-1], Image.Resampling.NEAREST)).astype(int)
    changed = np.abs(pixels - plain).sum(axis=2)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert (7 * row // why.LONGEST_SIDE, 7 * column // why.LONGEST_SIDE) == (1, 5)
    assert changed[300:, :200].max() < 30, "what does not matter stays as it is"
    assert "Covering the most orange part changes “blue” from" in shown and "not whether" in shown


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1024, 40), (40, 1024)])
def test_the_drawing_is_bounded_and_keeps_the_shape_of_the_image(toy_onnx, size):
    image = read_image(make_image("red", size))
    drawing = why.draw(image, occlude(OnnxClassifier(toy_onnx), image).drop)
    assert max(drawing.size) == why.LONGEST_SIDE
    assert drawing.width / drawing.height == pytest.approx(size[0] / size[1], rel=0.05)


def test_nothing_is_computed_unless_it_is_wanted(colours, monkeypatch):
    monkeypatch.setattr(why, "occlude", None)
    pool = ModelPool(colours, "champion")
    assert why.why(pool, False, upload_of(make_image()), "") == why.why(pool, True, None, "") == ""
    assert [*why.show_why(pool, False, upload_of(make_image()), "")] == [*why.show_why(pool, True, None, "")] == [""]


def test_the_page_says_what_is_being_done_before_the_drawing(colours):
    waiting, drawn = why.show_why(ModelPool(colours, "champion"), True, upload_of(make_image("red")), "")
    assert "Covering one part after another" in waiting and 'role="status"' in waiting
    assert '<figure class="why"' in drawn


def test_an_image_that_rests_on_no_part_and_a_bad_one_are_said_in_one_sentence(colours):
    pool = ModelPool(colours, "champion")
    assert "it rests on no single part" in why.why(pool, True, upload_of(make_image("green")), "")
    assert "cat.png is not a supported image" in why.why(pool, True, upload_of(b"no image"), "")
    assert "There is no version" in why.why(pool, True, upload_of(make_image()), "9")


def test_a_label_cannot_inject_html(toy_onnx):
    found = occlude(OnnxClassifier(toy_onnx), read_image(make_image()))
    vars(found)["label"] = "<script>"
    assert "<script>" not in why.figure(read_image(make_image()), found)


@in_chromium
def test_a_person_sees_which_parts_mattered_and_hides_them(tab, digit):
    tab.set_input_files("#image input[type=file]", str(digit))
    tab.wait_for_selector(".card.prediction")
    assert tab.locator("#why img").count() == 0
    tab.check("#why-switch input")
    tab.wait_for_selector("#why img")
    width, shown = tab.evaluate(
        "(() => { const i = document.querySelector('#why img'); return [i.naturalWidth, i.complete] })()"
    )
    assert width == why.LONGEST_SIDE and shown
    assert "Covering" in tab.inner_text("#why figcaption") and tab.get_attribute("#why img", "alt")
    tab.set_viewport_size({"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.uncheck("#why-switch input")
    tab.wait_for_selector("#why img", state="detached")
