"""The figures and the HTML report: complete, self-contained, escaped, and readable in a real browser."""

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.calibration import fit_threshold, softmax
from vitcifar.evaluation.compare import compare_evaluations
from vitcifar.evaluation.metrics import evaluate
from vitcifar.evaluation.neighbors import find_duplicates, nearest_training, thumbnails
from vitcifar.evaluation.ood import evaluate_ood
from vitcifar.evaluation.robustness import evaluate_robustness
from vitcifar.evaluation.slices import evaluate_slices
from vitcifar.report import analysis_plots, style
from vitcifar.report.galleries import (
    attention_gallery,
    highlight,
    mistakes_gallery,
    most_confident_mistakes,
    nearest_gallery,
)
from vitcifar.report.html import Section, Table, html_report
from vitcifar.report.log import run_report
from vitcifar.report.plots import confusion_matrix, figures, per_class, risk_coverage_curve

EVIL = ("cat", "<script>alert(1)</script>", "a & b $x_1$", "'\"><img src=x onerror=y>")
NUM = 80


@dataclasses.dataclass
class Run:
    """Everything that a report can show, of random images and random answers."""

    dataset: ImageDataset
    logits: np.ndarray
    names: tuple[str, ...] = EVIL

    @property
    def probabilities(self):
        return softmax(self.logits)

    @property
    def evaluation(self):
        return evaluate(self.logits, self.dataset.labels, self.names, fingerprint="f" * 64)

    def extras(self):
        evaluation, dataset = self.evaluation, self.dataset
        worse = evaluate(self.logits[:, ::-1], dataset.labels, self.names, fingerprint="f" * 64)
        places = most_confident_mistakes(dataset.labels, self.probabilities, 3)
        embeddings = thumbnails(dataset.images)
        return {
            "threshold": fit_threshold(evaluation.confidences, evaluation.correct, 0.8),
            "comparison": compare_evaluations(evaluation, worse, margin=0.02),
            "slices": evaluate_slices(evaluation, dataset),
            "robustness": evaluate_robustness(
                lambda images: self.logits, dataset, names=("fog", "contrast"), severities=(1, 5)
            ),
            "ood": evaluate_ood(self.logits, self.logits[:40] / 9),
            "duplicates": find_duplicates({"train": dataset, "test": dataset.subset([0, 1])}),
            "attention": {int(place): np.eye(4) for place in places},
            "nearest": nearest_training(places, embeddings, dataset, embeddings, k=3),
        }


@pytest.fixture(scope="module")
def run():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, NUM)
    logits = random.normal(size=(NUM, 4))
    logits[np.arange(NUM), labels] += 1.5
    images = random.integers(0, 256, (NUM, 16, 16, 3)).astype(np.uint8)
    ids = tuple(f"<i>{place}</i>.png" for place in range(NUM))
    return Run(ImageDataset(images=images, labels=labels, class_names=EVIL, ids=ids), logits)


@pytest.fixture(scope="module")
def page(run):
    return run_report(
        "Run <b>1</b>", run.evaluation, run.dataset, run.probabilities, subtitle="a & b",
        facts={"Data": "<x>"}, **run.extras(),
    )  # fmt: skip


class Reader(HTMLParser):
    """Collects tags, attributes and text, and fails on a tag that is closed out of order."""

    VOID = ("meta", "img", "br", "hr")

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], [], [], ""
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def ink(figure: Figure):
    """The figure as pixels, to see whether something was drawn."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def words(figure: Figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


# Figures


def test_figures_of_a_run_are_named_and_drawn(run):
    made = figures(run.evaluation, run.dataset, run.probabilities)
    assert list(made) == ["confusion_matrix", "per_class", "reliability", "risk_coverage", "mistakes"]
    for name, figure in made.items():
        assert isinstance(figure, Figure) and (ink(figure) < 128).mean() > 0.005, name


def test_confusion_matrix_shows_every_count(run):
    told = words(confusion_matrix(run.evaluation)).split()
    counts = [str(count) for count in run.evaluation.confusion.ravel() if count]
    assert all(told.count(count) >= counts.count(count) for count in set(counts))


@pytest.mark.parametrize("num_classes", [2, 37, 120])
def test_figures_can_be_drawn_for_few_and_for_many_classes(num_classes):
    random = np.random.default_rng(0)
    labels = random.integers(0, num_classes, 150)
    names = tuple(f"class number {k} with a long name" for k in range(num_classes))
    evaluation = evaluate(random.normal(size=(150, num_classes)), labels, names)
    for figure in (confusion_matrix(evaluation), per_class(evaluation)):
        assert max(figure.get_size_inches()) < 60 and ink(figure).std() > 5


def test_a_run_without_mistakes_has_all_figures_and_a_report():
    labels = np.arange(12) % 4
    images = np.zeros((12, 8, 8, 3), np.uint8)
    dataset = ImageDataset(images=images, labels=labels, class_names=EVIL, ids=("x",) * 12)
    logits = 50 * np.eye(4)[labels]
    evaluation = evaluate(logits, labels, EVIL)
    made = figures(evaluation, dataset, softmax(logits))
    assert all(ink(figure).std() > 1 for figure in made.values())
    assert "No image was answered wrongly." in words(made["mistakes"])
    assert "No image was answered wrongly." in run_report("Run", evaluation, dataset, softmax(logits))


def test_mistakes_are_the_wrong_answers_the_surest_first(run):
    places = most_confident_mistakes(run.dataset.labels, run.probabilities, 10)
    sure = run.probabilities[places].max(axis=1)
    assert (np.diff(sure) <= 0).all() and len(places) == 10
    assert not run.evaluation.correct[places].any()
    assert sure[0] == run.evaluation.confidences[~run.evaluation.correct].max()


def test_charts_and_galleries_can_be_drawn(run):
    extras = run.extras()
    places = np.array(list(extras["attention"]))
    maps = np.stack(list(extras["attention"].values()))
    made = [
        analysis_plots.robustness_heatmap(extras["robustness"]),
        analysis_plots.slice_chart(extras["slices"], run.evaluation.accuracy),
        analysis_plots.ood_chart(extras["ood"]),
        analysis_plots.comparison_chart(extras["comparison"]),
        risk_coverage_curve(run.evaluation, extras["threshold"]),
        attention_gallery(run.dataset, run.probabilities, maps, places),
        nearest_gallery(run.dataset, extras["nearest"]),
        mistakes_gallery(run.dataset, run.probabilities, limit=5),
    ]
    assert all((ink(figure) < 128).mean() > 0.003 for figure in made)


def test_highlight_darkens_what_was_not_looked_at():
    shown = highlight(np.full((16, 16, 3), 200, np.uint8), np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert shown.shape == (128, 128, 3) and shown[-1, -1, 0] > 190 > 70 > shown[0, 0, 0]


def test_drawing_leaves_matplotlibs_settings_and_pyplot_alone(run):
    import sys

    import matplotlib

    before = dict(matplotlib.rcParams)
    style.to_svg(confusion_matrix(run.evaluation), "a")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


# The report


def test_report_is_well_formed_and_has_a_section_for_all_that_was_given(page):
    reader = Reader(page)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Summary", "Against another version", "Lost to the other version",
        "Classes", "Most confident mistakes", "Where the network looked",
        "Nearest training images", "Confidence", "Kinds of images", "Corrupted images",
        "Images of something else", "Duplicates",
    ]  # fmt: skip
    links = re.findall(r'href="#([^"]+)"', page.split("<main>")[0])
    assert links == re.findall(r'<section id="([^"]+)"', page)
    assert reader.seen.count("svg") >= 8


def test_report_has_no_section_for_what_was_not_given(run):
    page = run_report("Run", run.evaluation, run.dataset, run.probabilities)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Summary", "Classes", "Most confident mistakes", "Confidence"]


def test_report_escapes_every_text(page):
    reader = Reader(page)
    assert "script" not in reader.seen
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    assert "<script>alert(1)</script>" in reader.text  # as words that can be read
    assert "<i>0</i>.png" in reader.text and "Run <b>1</b>" in reader.text
    assert not re.search(r"<i>\d|<b>1</b>|<x>", page)


def test_report_asks_nobody_for_anything(page):
    reader = Reader(page)
    for name, value in reader.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,")), value
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page and "<script" not in page and "<link" not in page


def test_ids_on_the_page_are_each_there_once(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert sorted(ids) == sorted(set(ids))
    referred = re.findall(r'(?:url\(#|href="#)([^)"]+)', page)
    assert len(referred) > 50 and set(referred) <= set(ids)


def test_figures_follow_the_colours_of_the_page(page):
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--ink)" in drawings and "var(--muted)" in drawings
    assert style.INK not in drawings and style.MUTED not in drawings


def test_report_is_the_same_each_time(run, page):
    again = run_report(
        "Run <b>1</b>", run.evaluation, run.dataset, run.probabilities, subtitle="a & b",
        facts={"Data": "<x>"}, **run.extras(),
    )  # fmt: skip
    assert again == page


def test_report_says_the_numbers_of_the_evaluation(run, page):
    text = Reader(page).text.split("Against another version")[1]  # the summary comes after the list of contents
    evaluation = run.evaluation
    for told in (
        f"{evaluation.accuracy:.1%}",
        f"{int(evaluation.correct.sum())} of {NUM} images right",
        f"95% interval {evaluation.accuracy_low:.1%} to {evaluation.accuracy_high:.1%}",
        f"{evaluation.ece:.3f}",
    ):
        assert told in text


def test_shares_in_a_table_are_bars_and_text_stays_text():
    table = Table(title="T", header=["name", "share", "count"], rows=[["<a>", 0.25, "7"]], numeric=[2])
    page = html_report("x", [Section(title="One", tables=[table])])
    assert 'style="width:25.0%"' in page and "25.0%</span>" in page
    assert "<td>&lt;a&gt;</td>" in page and '<td class="n">7</td>' in page


def test_report_of_no_duplicates_says_so(run):
    page = run_report("Run", run.evaluation, run.dataset, run.probabilities, duplicates=())
    assert "No image of one split is also in another." in page


def test_report_in_a_browser_is_quiet_and_fits_a_phone(page, tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here")
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        asked, said = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(file.as_uri())
        width = tab.evaluate("document.documentElement.scrollWidth")
        unseen = tab.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
        empty = tab.evaluate("[...document.querySelectorAll('figure svg')].filter(f => f.clientHeight < 80).length")
        browser.close()
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert (said, width, unseen, empty) == ([], 390, 0, 0)
