"""The page as people use it in Chromium: versions, the status, a phone, the keyboard, screen readers, programs."""

import base64
import re
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from support.page import screenshot, upload
from support.serving import FakeRegistry, expected_prediction, health, in_chromium
from support.toys import make_image

from vitcifar.serving.app import launch
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import layout


def test_the_version_list_starts_with_the_default_then_the_newest(colours):
    pool = ModelPool(colours, "champion")
    assert layout.version_choices(pool) == [
        ("champion (now version 1)", "champion"),
        ("version 2", "2"),
        ("version 1 · champion", "1"),
    ]
    assert len(layout.version_choices(ModelPool(colours, "2"))) == 2


@in_chromium
def test_a_person_selects_another_version(tab, registry, digit):
    upload(tab, digit)
    tab.wait_for_selector(".card.prediction")
    tab.select_option("#version select", label="version 2")
    tab.wait_for_selector(".by:has-text('toy version 2')")
    assert tab.inner_text(".verdict b") == expected_prediction(registry, 2, digit).label
    tab.wait_for_selector("#status .now:has-text('toy version 2')")
    assert "version 1 is the default" in tab.inner_text("#status .now"), "the champion is still version 1"
    tab.focus("#version select")
    tab.keyboard.press("Home")  # the keyboard chooses as in any list
    tab.wait_for_selector(".by:has-text('toy version 1')")
    tab.wait_for_selector("#status .now:has-text('toy version 1')")
    assert "default" not in tab.inner_text("#status .now")


@in_chromium
def test_a_person_sees_the_alias_move(tab, page, registry, digit):
    upload(tab, digit)
    tab.wait_for_selector(".card.prediction")
    registry.client.set_registered_model_alias("toy", "champion", "2")
    tab.wait_for_selector(".by:has-text('toy version 2')", timeout=10_000)
    assert "champion moved from version 1 to version 2" in tab.inner_text(".note.moved")
    assert tab.evaluate("getComputedStyle(document.querySelector('.note.moved')).animationName") != "none", "it leaves"
    chosen = "document.querySelector('#version select').selectedOptions[0].text"
    tab.wait_for_function(f"{chosen} == 'champion (now version 2)'")
    assert health(page)["version"] == 2
    registry.client.set_registered_model_alias("toy", "champion", "1")
    tab.wait_for_selector(".by:has-text('toy version 1')", timeout=10_000)


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_every_reader(tab, digit, scheme):
    """axe-core finds nothing serious, and the result of an upload is in view."""
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.reload()
    tab.wait_for_selector(".card.empty")
    upload(tab, digit)
    tab.wait_for_selector("#card:not(.busy) .card.prediction")
    tab.wait_for_function("document.querySelector('.verdict').getBoundingClientRect().bottom <= innerHeight")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    background = tab.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")
    screenshot(tab, f"page-phone-{scheme}")
    tab.click(".others summary")
    tab.click(".programs summary")
    assert_axe_finds_nothing_serious(tab)


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_tab_fits_and_every_reader_can_use_it(tab, tmp_path, digit, scheme, width):
    (tmp_path / "notes.png").write_text("no image")
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 844})
    tab.reload()
    tab.wait_for_selector(".card.empty")
    tab.wait_for_function("dark => !!document.querySelector('.dark') == dark", arg=scheme == "dark")
    assert_axe_finds_nothing_serious(tab)
    for name in ("batch", "compare"):
        tab.get_by_role("tab", name=name.capitalize()).click()
        tab.set_input_files(f"#{name} input[type=file]", [str(digit), str(tmp_path / "notes.png")])
        tab.wait_for_selector(f"#{name} .progress:has-text('done')")
        assert_axe_finds_nothing_serious(tab)
    tab.get_by_role("tab", name="Versions").click()
    tab.click("[data-card='2']")
    tab.wait_for_selector("#model-card h2")
    assert_axe_finds_nothing_serious(tab)


def assert_axe_finds_nothing_serious(tab: Any) -> None:
    """And nothing is wider than the window."""
    tab.wait_for_function("!document.getAnimations().some(one => one instanceof CSSTransition)")  # to another scheme
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(tab).response
    assert found["passes"], "axe ran"
    serious = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    assert not serious, [
        (rule["id"], node["html"], node["failureSummary"]) for rule in serious for node in rule["nodes"]
    ]


@in_chromium
def test_the_keyboard_reaches_everything_and_its_focus_is_visible(tab):
    tab.keyboard.press("Tab")
    order = []
    at = (
        "() => { const at = document.activeElement; const style = getComputedStyle(at);"
        " return [at.textContent.trim().split('\\n')[0], style.outlineStyle !== 'none']; }"
    )
    while tab.evaluate("document.activeElement !== document.body") and len(order) < 40:
        order.append(tab.evaluate(at))
        tab.keyboard.press("Tab")
    names = " | ".join(name for name, _ in order)
    positions = [
        names.find(name) for name in ("version 2", "Classify", "Choose an image", "Paste", "Camera", "Use from")
    ]
    assert -1 not in positions and positions == sorted(positions), names
    assert all(visible for _, visible in order), order


@in_chromium
def test_the_calls_that_the_page_shows_work(tmp_path, chromium):
    """At a sub-path and with a password, as they stand there; and the page says when the server is gone."""
    (tmp_path / "colours").mkdir()
    registry: Any = FakeRegistry(tmp_path / "colours")
    running = launch(registry, port=0, root_path="/cifar", passwords={"ann": "secret"})
    for name in ("cat.jpg", "dog.jpg"):
        (tmp_path / name).write_bytes(make_image())
    tab = chromium.new_page()
    tab.goto(running.url)
    tab.fill("input >> nth=0", "ann")
    tab.fill("input[type=password]", "secret")
    tab.click("button:has-text('Login')")
    tab.wait_for_selector(".card.empty")
    tab.click(".programs summary")
    curl, python = (tab.inner_text(f".programs pre.{name}") for name in ("curl", "python"))
    assert urlsplit(running.url).netloc in curl and "/cifar/v1/predict" in curl
    for program in (["bash", "-c", curl], [sys.executable, "-c", python]):
        program[2] = program[2].replace("NAME", "ann").replace("PASSWORD", "secret")
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and re.search("[\"']green[\"']:", done.stdout), done
    page_of = tab.get_attribute("a.docs", "href")
    token = base64.b64encode(b"ann:secret").decode()
    answer = tab.request.get(page_of, headers={"Authorization": f"Basic {token}"})
    assert answer.ok and "swagger" in answer.text()
    upload(tab, tmp_path / "cat.jpg")
    tab.wait_for_selector("#card:not(.busy) .card.prediction")
    shown = tab.get_attribute("img.shown", "src")
    running.close()
    upload(tab, tmp_path / "dog.jpg")
    tab.wait_for_selector(".picker-note:has-text('dog.jpg did not reach the server')")
    assert tab.get_attribute("img.shown", "src") == shown, "the prediction stays with its own image"
    tab.wait_for_selector("#status .unreachable:has-text('does not answer')", timeout=15_000)
    assert tab.evaluate("getComputedStyle(document.querySelector('.dot')).backgroundColor") == "rgb(210, 60, 31)"
    tab.wait_for_timeout(300)
    assert not tab.is_visible(".toast-wrap"), "one message, not two"
    tab.close()
