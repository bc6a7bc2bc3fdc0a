"""What a training run gets from its analysis: metrics, JSON, figures and the report."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from support.planted import CONFIG, planted_splits, random_network, scored

from vitcifar.report.log import analyze_trained


@dataclasses.dataclass
class Memory:
    """A run that remembers what it is given."""

    run_id: str = "0" * 32
    metrics: dict = dataclasses.field(default_factory=dict)
    texts: dict = dataclasses.field(default_factory=dict)
    figures: list = dataclasses.field(default_factory=list)

    def log(self, step, metrics):
        self.metrics |= metrics

    def log_text(self, name, text):
        self.texts[name] = text

    def log_json(self, name, content):
        self.texts[name] = json.dumps(content)

    def log_figure(self, name, figure):
        self.figures.append(name)

    log_image = log_figure


@pytest.fixture(scope="module")
def run():
    memory = Memory()
    analyze_trained(memory, random_network(), planted_splits(), CONFIG, *scored())
    return memory


def test_a_run_gets_metrics_json_figures_and_the_report(run):
    splits = planted_splits()
    assert run.metrics["analysis/duplicates_same_pixels"] == 2
    assert 0 <= run.metrics["analysis/corruption_accuracy"] <= 1
    assert set(run.texts) == {"evaluation/analysis.json", "report.html"}
    names = ["threshold", "slices", "attention", "nearest", "robustness"]
    assert set(run.figures) == {f"analysis/{name}" for name in names}
    page = run.texts["report.html"]
    assert "vit_tiny on digits" in page and run.run_id in page and splits.fingerprint[:16] in page
    for title in ("Attention rollout", "Nearest training images", "Corruption robustness", "Near-duplicates"):
        assert f"<h2>{title}</h2>" in page
    assert splits.train.ids[5] in page


def test_without_an_analysis_nothing_is_logged():
    memory = Memory()
    config = dataclasses.replace(CONFIG, analysis="none")
    analyze_trained(memory, random_network(), planted_splits(), config, *scored())
    assert memory == Memory()


def test_the_report_opens_offline_without_requests(run, tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here")
    file = tmp_path / "report.html"
    file.write_text(run.texts["report.html"], encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
        tab = context.new_page()
        requests, messages = [], []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: messages.append(message.text))
        tab.goto(file.as_uri())
        width = tab.evaluate("document.documentElement.scrollWidth")
        missing = tab.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
        browser.close()
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert (messages, width, missing) == ([], 1200, 0)
