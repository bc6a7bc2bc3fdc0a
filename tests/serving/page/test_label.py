"""The tab Label, as a person uses it, and what a forged request gets of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from support.page import screenshot
from support.serving import FakeRegistry, in_chromium
from support.toys import make_image

from vitcifar.data.dataset import pixel_hash
from vitcifar.data.image import read_image
from vitcifar.serving.app import Page, launch
from vitcifar.serving.feedback import FeedbackStore, live_accuracies
from vitcifar.serving.feedback_export import export_feedback
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page.feedback import NONE_OF_THESE
from vitcifar.serving.page.label import Labelling
from vitcifar.serving.suggest import Suggestion, read_suggestions

COLOURS = {"one.png": (120, 110, 100), "two.png": (90, 95, 100), "four.png": (60, 60, 61)}


TABS = ("Classify", "Batch", "Compare", "Versions", "Monitor", "Label")


def write_table(folder: Path) -> Path:
    """Four images to label; the third is broken."""
    for name, colour in COLOURS.items():
        (folder / name).write_bytes(make_image(colour, (24, 16)))
    (folder / "three.png").write_text("no image")
    table = folder / "suggestions.csv"
    table.write_text("rank,path\n1,one.png\n2,two.png\n3,three.png\n4,four.png\n")
    return table


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('feedback')}/feedback.db"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Page]:
    registry: Any = FakeRegistry(tmp_path_factory.mktemp("colours"))
    table = write_table(tmp_path_factory.mktemp("photos"))
    running = launch(registry, port=0, poll_seconds=0.2, feedback=url, suggestions=table)
    yield running
    running.close()


@in_chromium
def test_a_person_labels_one_image_after_another(tab, url):
    tab.get_by_role("tab", name="Label").click()
    tab.wait_for_selector("#label .progress:has-text('Image 1 of 4, 0 labelled')")
    assert "Version 1 predicts red, " in tab.inner_text("#label .predicted")
    names = [button.inner_text() for button in tab.query_selector_all("#label .classes button")]
    assert names == ["red", "green", "blue", "none of these classes"]
    assert tab.evaluate("document.querySelector('#label img').naturalWidth") == 24
    for scheme in ("light", "dark"):
        for width in (1280, 390, 360):
            tab.emulate_media(color_scheme=scheme)
            tab.set_viewport_size({"width": width, "height": 844})
            tab.wait_for_function("!document.getAnimations().some(one => one instanceof CSSTransition)")
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            tab.wait_for_function("document.querySelectorAll('.overflow-menu:not(.hide)').length === 0")
            assert all(tab.get_by_role("tab", name=name).is_visible() for name in TABS), "no tab is in a menu"
            screenshot(tab, f"label-{width}-{scheme}")
        found = Axe().run(tab).response["violations"]
        assert [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")] == []
    tab.click("#label .classes >> text=blue")
    tab.wait_for_selector("#label .progress:has-text('Image 2 of 4, 1 labelled')")
    assert tab.inner_text("#label .said") == "one.png: blue. Thank you."
    tab.click("#label .skip")
    tab.wait_for_selector("#label .problem:has-text('three.png is not a supported image')")
    assert not tab.is_visible("#label .classes") and not tab.is_visible("#label img")
    tab.click("#label .skip")
    tab.wait_for_selector("#label .progress:has-text('Image 4 of 4')")
    tab.click("#label .classes >> text=none of these classes")
    tab.wait_for_selector("#label .progress:has-text('Image 2 of 4, 2 labelled')")
    tab.focus("#label .classes button >> nth=1")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#label .progress:has-text('Image 3 of 4, 3 labelled')")
    first, last, second = FeedbackStore(url).entries("colours")
    assert [(one.truth, one.source, one.version) for one in (first, second, last)] == [
        ("blue", "suggested", 1),
        ("green", "suggested", 1),
        (None, "suggested", 1),
    ]
    pixels = np.asarray(Image.new("RGB", (24, 16), COLOURS["one.png"]))
    assert first.image_hash == pixel_hash(pixels) and first.has_image and first.label == "red"


@pytest.fixture
def labelling(tmp_path: Path, colours: FakeRegistry) -> Labelling:
    store, pool = FeedbackStore(f"sqlite:///{tmp_path}/feedback.db"), ModelPool(colours, "champion")  # type: ignore[arg-type]
    return Labelling(pool, store, read_suggestions(write_table(tmp_path)))


def test_an_answer_is_about_the_image_that_was_seen(labelling, tmp_path):
    shown = labelling.label({"index": -1, "hash": "", "truth": None})
    (tmp_path / "one.png").write_bytes(make_image("blue"))
    answer = labelling.label({**shown, "truth": "blue"})
    assert answer == {"problem": "one.png has changed: reload the page and look again."}
    assert labelling.store.entries("colours") == []


@pytest.mark.parametrize(
    "sent",
    [
        None,
        "/etc/hostname",
        {"index": "/etc/hostname", "hash": "", "truth": "red"},
        {"index": 4, "hash": "", "truth": "red"},
        {"index": -2, "hash": "", "truth": "red"},
        {"index": 0, "hash": None, "truth": "red"},
        {"index": 0, "hash": "", "truth": ["red"]},
    ],
)
def test_a_forged_request_opens_and_stores_nothing(labelling, sent):
    assert labelling.label(sent) == {"problem": "The request is not one of this page: reload the page and try again."}
    assert labelling.store.entries("colours") == []


@pytest.mark.parametrize(("index", "expected"), [(-(10**30), 0), (10**30, 0), (0, 1), (3, 0)])
def test_any_number_is_followed_by_an_image_of_the_table(labelling, index, expected):
    assert labelling.label({"index": index, "truth": None})["index"] == expected


def test_a_class_that_the_version_does_not_have_is_refused(labelling):
    shown = labelling.label({"index": -1, "hash": "", "truth": None})
    assert "is no class of colours version 1" in labelling.label({**shown, "truth": "<b>"})["problem"]
    assert labelling.store.entries("colours") == []


def test_a_prediction_that_is_right_is_stored_as_right(labelling):
    shown = labelling.label({"index": -1, "hash": "", "truth": None})
    assert labelling.label({**shown, "truth": shown["label"]})["index"] == 1
    (entry,) = labelling.store.entries("colours")
    assert entry.is_right and entry.has_image


def test_an_answer_is_exported_to_the_training_images_of_a_dataset(labelling, tmp_path):
    shown = labelling.label({"index": -1, "hash": "", "truth": None})
    labelling.label({**shown, "truth": "blue"})
    store = labelling.store
    export_feedback(store, store.entries("colours"), tmp_path / "images", golden=False)
    (file,) = (tmp_path / "images").glob("train/*/*.png")
    assert file.parent.name == "blue" and pixel_hash(read_image(file)) == shown["hash"]
    assert live_accuracies(store.entries("colours")) == [], (
        "an image of which it was uncertain says little of a version"
    )


def test_suggested_images_tell_no_monitor_and_no_challenger(labelling):
    told: list[Any] = []
    labelling.store.watch = labelling.pool.watch = lambda *given: told.append(given)
    shown = labelling.label({"index": -1, "hash": "", "truth": None})
    labelling.label({**shown, "truth": NONE_OF_THESE})
    assert told == [] and labelling.pool.monitor.reports() == []
    assert len(labelling.store.entries("colours")) == 1


def test_images_that_are_labelled_already_are_not_shown_again(labelling, tmp_path):
    table = [
        Suggestion(path=str(tmp_path / name), image_hash=pixel_hash(read_image(tmp_path / name))) for name in COLOURS
    ]
    shown = labelling.label({"index": -1, "hash": "", "truth": None})
    labelling.label({**shown, "truth": "red"})
    again = Labelling(labelling.pool, labelling.store, table)
    assert again.label({"index": -1, "truth": None})["progress"] == "Image 2 of 3, 1 labelled"
    for name in ("two.png", "four.png"):
        now = again.label({"index": -1, "truth": None})
        last = again.label({**now, "truth": "green"})
        assert last["said"] == f"{name}: green. Thank you."
    assert last["index"] is None and last["progress"] == "All 3 images are labelled."


def test_a_store_that_cannot_be_reached_is_one_sentence_without_its_address(labelling):
    shown = labelling.label({"index": -1, "hash": "", "truth": None})
    labelling.store._engine.dispose()
    Path(labelling.store.url.removeprefix("sqlite:///")).unlink()
    assert labelling.label({**shown, "truth": "red"})["problem"] == (
        "The feedback cannot be stored now: send it again later."
    )


def test_without_suggestions_there_is_no_tab(colours, tmp_path):
    from vitcifar.serving.page.layout import build_page

    store, pool = FeedbackStore(f"sqlite:///{tmp_path}/feedback.db"), ModelPool(colours, "champion")
    assert "label" not in {one.elem_id for one in build_page(pool, 1.0, store).blocks.values()}
