"""What a run gets: metrics, JSON, figures and the report."""

import dataclasses
import json

import pytest

from vitcifar.config import resolve
from vitcifar.evaluation.analysis import Analysis
from vitcifar.report.log import data_name, log_evaluation, log_report


@dataclasses.dataclass
class Memory:
    """A run that remembers what it is given."""

    metrics: dict = dataclasses.field(default_factory=dict)
    texts: dict = dataclasses.field(default_factory=dict)
    figures: dict = dataclasses.field(default_factory=dict)
    images: dict = dataclasses.field(default_factory=dict)

    def log(self, step, metrics):
        self.metrics |= metrics

    def log_text(self, name, text):
        self.texts[name] = text

    def log_json(self, name, content):
        self.texts[name] = json.dumps(content)

    def log_figure(self, name, figure):
        self.figures[name] = figure

    def log_image(self, name, image):
        self.images[name] = image


def test_an_evaluation_is_logged_as_metrics_json_and_figures(result):
    run = Memory()
    log_evaluation(run, result.evaluation, result.dataset, result.probabilities)
    assert run.metrics["test/accuracy"] == result.evaluation.accuracy
    assert json.loads(run.texts["evaluation/test.json"])["accuracy"] == result.evaluation.accuracy
    assert set(run.figures) == {
        f"test/{name}" for name in ("confusion_matrix", "per_class", "reliability", "risk_coverage")
    }
    assert list(run.images) == ["test/mistakes"] and run.images["test/mistakes"].mode == "RGB"


def test_an_analysis_and_a_comparison_are_logged_with_the_report(result):
    run = Memory()
    log_report(
        run, result.analysis, result.evaluation, result.dataset, result.probabilities,
        title="a on b", facts={"Run": "f00"}, comparison=result.comparison,
    )  # fmt: skip
    assert run.metrics["analysis/coverage"] == result.analysis.threshold.coverage
    assert run.metrics["compare/difference"] == result.comparison.difference
    names = {f"analysis/{name}" for name in ("threshold", "slices", "robustness", "ood")}
    assert set(run.figures) == names | {"compare/difference"}
    assert set(run.images) == {"analysis/attention", "analysis/nearest"}
    assert set(run.texts) == {"evaluation/analysis.json", "evaluation/comparison.json", "report.html"}
    assert "<h1>a on b</h1>" in run.texts["report.html"] and "f00" in run.texts["report.html"]


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
