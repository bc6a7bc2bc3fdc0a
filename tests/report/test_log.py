"""What a run gets: metrics, JSON, figures and the report."""

import dataclasses
import datetime
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.planted import CONFIG, planted_splits, predicted, random_network
from support.reports import HOSTILE, Memory, Page
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitcifar import __version__
from vitcifar.evaluation.analysis import Analysis
from vitcifar.evaluation.metrics import metric_names
from vitcifar.presets import resolve
from vitcifar.report import style
from vitcifar.report.log import (
    analyze_trained,
    calibrate,
    data_name,
    log_evaluation,
    log_report,
    note,
)
from vitcifar.report.tables import MAX_MISTAKES, THUMBNAIL, log_projector
from vitcifar.training.feature_cache import Embedder
from vitcifar.training.loop import TrainResult

RESULT = TrainResult(best_epoch=2, best_metrics={}, num_epochs=2, num_steps=6, num_trained_parameters=1)
GIT = {"commit": "c0ffee" * 6 + "beef", "dirty": True}


@pytest.fixture(scope="module")
def run():
    memory = Memory(histories={"validation/loss": [(3, 1.5), (6, 1.25)]})
    analyze_trained(
        memory, Embedder(random_network(), CONFIG, None), planted_splits(), CONFIG, *predicted(), result=RESULT, git=GIT
    )
    return memory


def test_a_run_gets_metrics_json_figures_and_the_report(run):
    splits = planted_splits()
    assert json.loads(run.texts["evaluation/analysis.json"])["duplicates"]["num_same_pixels"] == 2
    assert 0 <= run.metrics["test/corruption_accuracy"] <= 1
    assert len(run.metrics) < 6, "few enough to compare runs by"
    assert run.tables["evaluation/slices"]["name"][:2] == ["dark", "medium"]
    assert set(run.texts) == {"evaluation/analysis.json", "report.html"}
    names = ["slices", "attention", "nearest", "robustness"]
    assert {*run.figures, *run.images} == {f"analysis/{name}" for name in names}
    page = run.texts["report.html"]
    assert "vit_tiny on digits" in page and run.run_id in page and splits.fingerprint[:16] in page
    for title in (
        "Training",
        "Attention rollout",
        "Nearest training images",
        "Corruption robustness",
        "Near-duplicates",
    ):
        assert f"<h2>{title}</h2>" in page
    assert splits.train.ids[5] in page


def test_a_report_says_when_by_what_and_how_it_was_made(run):
    page = run.texts["report.html"]
    assert f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}" in page and f"vitcifar {__version__}" in page
    assert "c0ffeec0ffee, with changes" in page
    assert "vitcifar train --preset digits --train-per-class 6" in Page(page).text
    assert "The weights are those of epoch 2 of 2" in page and "epoch 2: 1.250 on validation" in page


def test_a_temperature_that_makes_the_loss_on_test_worse_is_not_kept():
    splits = planted_splits()
    logits = 6.0 * np.eye(len(splits.class_names))
    validation, test = logits[splits.validation.labels], logits[splits.test.labels]
    validation[::3] = np.roll(validation[::3], 1, axis=1)  # validation asks for less confidence, test for more
    rejected = calibrate(validation, test, splits, 0.99)
    assert rejected.temperature == 1 and rejected.temperature_rejected > 1
    assert (rejected.loss, rejected.ece) == (rejected.loss_uncalibrated, rejected.ece_uncalibrated)
    assert "fitted on validation, made one of them worse" in rejected.calibration_text()
    assert rejected.threshold is None  # 2 of 3 confident ones are correct
    kept = calibrate(logits[splits.validation.labels] / 3, test / 3, splits, 0.99)
    assert kept.temperature < 1 and kept.temperature_rejected is None
    assert kept.loss < kept.loss_uncalibrated
    assert f"without calibration ECE {kept.ece_uncalibrated:.4f}" in kept.calibration_text()


def test_without_an_analysis_nothing_is_logged():
    memory = Memory()
    config = dataclasses.replace(CONFIG, analysis="none")
    analyze_trained(
        memory, Embedder(random_network(), config, None), planted_splits(), config, *predicted(), result=RESULT, git=GIT
    )
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


def test_an_evaluation_is_logged_as_metrics_json_and_figures(result):
    run = Memory()
    log_evaluation(run, result.evaluation, result.dataset, result.probabilities)
    assert run.metrics["test/accuracy"] == result.evaluation.accuracy
    assert json.loads(run.texts["evaluation/test.json"])["accuracy"] == result.evaluation.accuracy
    assert set(run.figures) == {
        f"test/{name}" for name in ("confusion_matrix", "per_class", "reliability", "risk_coverage")
    }
    assert list(run.images) == ["test/mistakes"] and run.images["test/mistakes"].mode == "RGB"


def test_mistakes_and_classes_are_tables(result):
    run = Memory()
    log_evaluation(run, result.evaluation, result.dataset, result.probabilities)
    mistakes, classes = run.tables["evaluation/mistakes"], run.tables["evaluation/classes"]
    assert classes["name"] == list(result.evaluation.class_names)
    assert classes["recall"] == [row.recall for row in result.evaluation.classes]
    assert 0 < len(mistakes["id"]) == (~result.evaluation.correct).sum() <= MAX_MISTAKES
    assert mistakes["confidence"] == sorted(mistakes["confidence"], reverse=True)
    assert {image.size for image in mistakes["image"]} == {(THUMBNAIL, THUMBNAIL)}
    assert not set(zip(mistakes["label"], mistakes["prediction"], strict=True)) & {(name, name) for name in HOSTILE}


def test_every_class_has_a_precision_recall_curve_and_the_test_images_are_in_the_projector(result):
    run = Memory()
    log_evaluation(run, result.evaluation, result.dataset, result.probabilities)
    log_projector(run, result.evaluation, result.dataset, result.logits)
    run.writer.close()
    tags = EventAccumulator(run.writer.log_dir).Reload().Tags()["tensors"]
    assert {f"test/{name}" for name in metric_names(HOSTILE)} <= set(tags)
    (metadata,) = Path(run.writer.log_dir).glob("*/*/metadata.tsv")
    rows = metadata.read_text().splitlines()
    assert rows[0].split("\t") == ["label", "prediction", "correct", "id"] and len(rows) == 1 + len(result.dataset)


def test_a_note_has_the_results_the_recipe_and_the_command():
    text = note(dataclasses.replace(CONFIG, seed=7), planted_splits(), "**Test accuracy 0.9.**")
    lines = text.split("\n\n")
    assert lines[0] == "**Test accuracy 0.9.**"
    assert lines[1].startswith("Preset digits, ") and "seed 7" in lines[1]
    assert lines[-1].startswith("    vitcifar train --preset digits") and "--seed 7" in lines[-1]


def test_an_analysis_and_a_comparison_are_logged_with_the_report(result):
    run = Memory()
    log_report(
        run, result.analysis, result.evaluation, result.dataset, result.probabilities,
        title="a on b", facts={"Run": "f00"}, comparison=result.comparison,
    )  # fmt: skip
    assert run.metrics["test/coverage"] == result.analysis.threshold.coverage
    assert run.metrics["test/difference"] == result.comparison.difference
    names = {f"analysis/{name}" for name in ("slices", "robustness", "ood")}
    assert set(run.figures) == names | {"compare/difference"}
    assert set(run.images) == {"analysis/attention", "analysis/nearest"}
    assert set(run.texts) == {"evaluation/analysis.json", "evaluation/comparison.json", "report.html"}
    assert "<h1>a on b</h1>" in run.texts["report.html"] and "f00" in run.texts["report.html"]


def test_no_two_figures_of_a_run_are_the_same(run, result):
    log_evaluation(run, result.evaluation, result.dataset, result.probabilities)
    log_report(run, result.analysis, result.evaluation, result.dataset, result.probabilities, title="x")
    shown = [style.to_svg(figure) for figure in run.figures.values()]
    shown += [image.tobytes() for image in run.images.values()]
    assert len(shown) == len(set(shown)) == len(run.figures) + len(run.images) > 8


@pytest.mark.parametrize("analysis", [None, Analysis()])
def test_only_what_exists_is_logged(result, analysis):
    run = Memory()
    log_report(run, analysis, result.evaluation, result.dataset, result.probabilities, title="x")
    assert not run.figures and not run.images
    assert ("evaluation/analysis.json" in run.texts) == (analysis is not None)
    assert "Most confident errors" in run.texts["report.html"] and "Slices" not in run.texts["report.html"]


def test_a_folder_of_images_is_named_after_the_folder(tmp_path):
    assert data_name(resolve("digits")) == "digits"
    assert data_name(dataclasses.replace(resolve("digits"), data="folder", data_dir=str(tmp_path / "birds"))) == "birds"
