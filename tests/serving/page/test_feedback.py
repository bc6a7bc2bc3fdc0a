"""What people answer under a prediction: stored with their consent, thanked for, and nothing else moves."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from support.serving import expected_prediction, in_chromium
from support.toys import Published, make_image, settle

from vitcifar.data.dataset import pixel_hash
from vitcifar.data.image import read_image
from vitcifar.serving.app import Page, launch
from vitcifar.serving.feedback import FeedbackStore
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import feedback


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('feedback')}/feedback.db"


@pytest.fixture(scope="module")
def page(published: Published, url: str) -> Iterator[Page]:
    from vitcifar.registry.registry import Registry

    with pytest.MonkeyPatch.context() as patch:
        settle(published.folder, patch)
        running = launch(Registry(published.model_name), port=0, poll_seconds=0.2, feedback=url)
        yield running
        running.close()


def said(tab: Any) -> str:
    return tab.inner_text(".feedback-line").strip()


@in_chromium
def test_a_person_says_that_a_prediction_is_right(tab, registry, digit, url):
    assert not tab.is_visible("#feedback") and not tab.is_visible("#why-switch"), "there is no prediction"
    tab.set_input_files("#image input[type=file]", str(digit))
    tab.wait_for_selector(".card.prediction")
    tab.wait_for_selector("#feedback-right")
    tab.locator("#feedback-right").scroll_into_view_if_needed()
    box = tab.locator("#feedback").bounding_box()
    tab.click("#feedback-right")
    tab.wait_for_selector(".feedback-line:has-text('Thank you')")
    label = expected_prediction(registry, 1, digit).label
    assert said(tab) == f"Thank you. “{label}” by version 1 is marked as right."
    assert tab.locator("#feedback").bounding_box() == box, "nothing moves"
    (entry,) = FeedbackStore(url).entries("toy")
    pixels = read_image(digit)
    assert (entry.label, entry.truth, entry.version, entry.source) == (label, label, 1, "page")
    assert entry.image_hash == pixel_hash(pixels) and entry.has_image
    assert (read_image(FeedbackStore(url).image(entry.image_hash)) == pixels).all()
    tab.click("#feedback-right")
    tab.wait_for_selector(".feedback-line:has-text('It was already.')")


@in_chromium
def test_a_person_says_by_keyboard_what_it_is_and_keeps_the_image_private(tab, registry, url, tmp_path):
    (tmp_path / "grey.png").write_bytes(make_image((90, 90, 90), (31, 17)))
    tab.set_input_files("#image input[type=file]", str(tmp_path / "grey.png"))
    tab.wait_for_selector(".card.prediction")
    tab.wait_for_selector("#feedback-wrong")
    predicted = expected_prediction(registry, 1, tmp_path / "grey.png").label
    truth = "7" if predicted != "7" else "3"
    tab.click("#feedback-wrong")
    tab.wait_for_selector(".feedback-line:has-text('Choose in the list what it is')")
    tab.focus("#feedback-truth select")
    tab.keyboard.type(truth)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "feedback-wrong", "the button follows the list"
    tab.focus("#feedback-keep input")
    tab.keyboard.press("Space")
    assert not tab.is_checked("#feedback-keep input")
    tab.focus("#feedback-wrong")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".feedback-line:has-text('Thank you')")
    assert f"is marked as wrong: it is {truth}." in said(tab)
    assert tab.get_attribute(".feedback-line", "aria-live") == "polite"
    entry = FeedbackStore(url).entries("toy")[-1]
    assert (entry.label, entry.truth, entry.has_image) == (predicted, truth, False)
    tab.click("#image button[aria-label='Remove Image'], #image button[aria-label='Clear']")
    tab.wait_for_selector("#feedback", state="hidden")
    tab.wait_for_function("document.querySelector('#feedback-truth select').value === ''")
    assert tab.text_content(".feedback-line").strip() == ""
    (tmp_path / "notes.png").write_text("no image")
    tab.set_input_files("#image input[type=file]", str(tmp_path / "notes.png"))
    tab.wait_for_selector(".card.error")
    assert not tab.is_visible("#feedback") and not tab.is_visible("#why-switch"), "there is nothing to judge"


@in_chromium
def test_the_page_says_what_is_stored_and_fits_a_phone(tab, digit):
    tab.set_input_files("#image input[type=file]", str(digit))
    tab.wait_for_selector("#feedback")
    text = tab.inner_text("#feedback")
    assert "Keep my image with it" in text and "a checksum of the image" in text and "not deleted" in text
    tab.set_viewport_size({"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_without_an_image_or_a_class_nothing_is_stored(colours, tmp_path):
    store, pool = FeedbackStore(f"sqlite:///{tmp_path}/feedback.db"), ModelPool(colours, "champion")
    assert "There is no image yet." in feedback.store_answer(pool, store, True, None, "", True, "")
    uploaded: Any = type("Upload", (), {"path": "/etc/hostname", "url": None, "orig_name": "a.png"})()
    assert "Choose in the list" in feedback.store_answer(pool, store, False, uploaded, "", True, "")
    assert "was not uploaded" in feedback.store_answer(pool, store, True, uploaded, "", True, "")
    assert store.entries("colours") == []


def test_a_forged_class_is_refused_and_escaped(colours, tmp_path):
    store, pool = FeedbackStore(f"sqlite:///{tmp_path}/feedback.db"), ModelPool(colours, "champion")
    content = base64.b64encode(make_image()).decode()
    uploaded: Any = type(
        "Upload", (), {"path": None, "url": f"data:image/png;base64,{content}", "orig_name": "a.png"}
    )()
    forged: Any = ["<script>"]
    answer = feedback.store_answer(pool, store, False, uploaded, "", True, forged)
    assert "is no class of colours version 1" in answer and "<script>" not in answer
    assert store.entries("colours") == []


def test_the_list_has_the_classes_of_the_version_and_none_of_them(colours):
    pool = ModelPool(colours, "champion")
    known = ["red", "green", "blue", feedback.NONE_OF_THESE]
    assert [value for _, value in feedback.choices(pool, "2")] == [feedback.UNKNOWN, *known]
    colours.broken.add(2)
    assert feedback.choices(pool, "2")[1] == ("red", "red")
