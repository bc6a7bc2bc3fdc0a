"""The tab Monitor, as a person sees it, and what it says of versions and of the challenger."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from support.page import screenshot
from support.serving import in_chromium
from support.watched import WatchedRegistry, colours, files

from vitcifar.serving import monitor as windows
from vitcifar.serving.app import Page, launch
from vitcifar.serving.monitor import Report
from vitcifar.serving.page import monitor
from vitcifar.serving.shadow import Agreement


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    registry: Any = WatchedRegistry(tmp_path_factory.mktemp("watched"))
    registry.aliases["challenger"] = 2
    running = launch(registry, port=0, poll_seconds=0.2, shadow="challenger")
    yield running
    running.close()


@in_chromium
def test_a_person_sees_how_the_versions_do(tab, page, monkeypatch):
    monkeypatch.setattr(windows, "REFRESH_SECONDS", -1.0)
    tab.get_by_role("tab", name="Monitor").click()
    tab.wait_for_selector("#monitor .none:has-text('Nothing was classified yet.')")
    for images in (colours(60, seed=1), colours(60, mean=190)):
        for start in (0, 30):
            assert httpx.post(
                f"{page.url}/v1/predict", files=files(images[start : start + 30]), trust_env=False
            ).is_success
    tab.get_by_role("tab", name="Versions").click()
    tab.get_by_role("tab", name="Monitor").click()
    tab.wait_for_selector("#monitor .watched:has-text('Version 1') >> text=120 different images")
    text = tab.inner_text("#monitor")
    assert "Estimated accuracy" in text and "95% band" in text and "Not confident" in text
    assert tab.inner_text("#monitor .warn dd >> nth=0") == "Found"
    assert "In the shadow: Version 2" in text and "Agreement of 2 with 1" in text
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            tab.emulate_media(color_scheme=scheme)
            tab.set_viewport_size({"width": width, "height": 900})
            tab.wait_for_function("!document.getAnimations().some(one => one instanceof CSSTransition)")
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            screenshot(tab, f"monitor-{width}-{scheme}")
        found = Axe().run(tab).response["violations"]
        assert [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")] == []


def test_what_is_not_known_is_not_shown():
    assert monitor.figures(Report(version=1, release_digest="d", num_images=3, num_predictions=3)) == []
    none = monitor.pair_figure(Agreement(1, 2, dropped=3, failed=1))
    assert "–" in none and "3 more were not predicted" in none and "1 failed" in none


def test_the_name_of_an_alias_is_escaped():
    shadow: Any = type("Fake", (), {"spec": "<b>", "number": lambda: None, "agreements": list, "problem": "<i>"})
    html = monitor.shadow_section(shadow)
    assert "<b>" not in html and "<i>" not in html
