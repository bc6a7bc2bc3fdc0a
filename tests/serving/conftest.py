"""Models and pages that the tests of serving share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from support.serving import CHROMIUM, FLAGS, FakeRegistry, make_model
from support.toys import Published, settle

from vitcifar.serving.app import Page, launch
from vitcifar.serving.loaded_model import LoadedModel


@pytest.fixture
def colours(tmp_path: Path) -> FakeRegistry:
    return FakeRegistry(tmp_path)


@pytest.fixture
def model(toy_onnx: Path) -> LoadedModel:
    return make_model(toy_onnx)


@pytest.fixture
def digit(published: Published, tmp_path: Path) -> Path:
    """A real digit as a file."""
    Image.fromarray(published.splits.test.images[0]).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


@pytest.fixture(scope="module")
def page(published: Published) -> Iterator[Page]:
    """The page of the published toy on a free port; it polls its registry five times a second."""
    from vitcifar.registry.registry import Registry

    with pytest.MonkeyPatch.context() as patch:
        settle(published.folder, patch)
        running = launch(Registry(published.model_name), port=0, poll_seconds=0.2)
        yield running
        running.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Versions 1 and 2 of a toy behind REST, without the page; nobody follows its alias."""
    running = launch(FakeRegistry(tmp_path_factory.mktemp("colours")), port=0, page=False, poll_seconds=1e6)
    yield running
    running.close()


@pytest.fixture
def client(server: Page) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=20) as opened:
        yield opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for the tests of a module."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(page: Page, chromium: Any) -> Iterator[Any]:
    """A tab of Chromium on the page; afterwards, it requested nothing from other hosts and logged no error."""
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    requested: list[str] = []
    errors: list[str] = []
    tab.on("request", lambda request: requested.append(request.url))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(page.url)
    tab.wait_for_selector(".card.empty")
    yield tab
    tab.close()
    assert {urlsplit(url).netloc for url in requested if url.startswith("http")} == {urlsplit(page.url).netloc}
    assert errors == []
