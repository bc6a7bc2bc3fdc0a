"""Plots of an evaluation say its numbers."""

import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from support.reports import HOSTILE, NUM, texts

from vitcifar.evaluation.calibration import risk_coverage, wilson_interval
from vitcifar.evaluation.metrics import evaluate
from vitcifar.report import style
from vitcifar.report.plots import MAX_CLASSES, confusion_matrix, figures, per_class, reliability, risk_coverage_curve


def error_bars(axes):
    """The ends of each error bar: (bars, 2 ends, x and y)."""
    (container,) = (c for c in axes.containers if isinstance(c, ErrorbarContainer))
    return np.array(container.lines[2][0].get_segments())


def evaluation_of(num_classes, num_images=150):
    random = np.random.default_rng(0)
    names = tuple(f"class number {label} with a long name" for label in range(num_classes))
    labels = random.integers(0, num_classes, num_images)
    return evaluate(random.normal(size=(num_images, num_classes)), labels, names)


def test_each_plot_of_an_evaluation_has_its_name_and_title(result):
    titles = {name: figure.axes[0].get_title(loc="left") for name, figure in figures(result.evaluation).items()}
    assert titles == {
        "confusion_matrix": "Confusion matrix",
        "per_class": "Recall, precision and F1 by class",
        "reliability": "Reliability diagram",
        "risk_coverage": "Risk-coverage curve",
    }


def test_confusion_matrix_shows_each_count_in_its_cell(result):
    figure = confusion_matrix(result.evaluation)
    axes, confusion = figure.axes[0], result.evaluation.confusion
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted class", "True class")
    cells = {text.get_position(): text.get_text() for text in axes.texts if text.get_text().isdigit()}
    assert cells == {(x, y): str(count) for (y, x), count in np.ndenumerate(confusion) if count}
    assert f"{np.trace(confusion)} of {NUM} images correct" in texts(figure)
    assert [label.get_text() for label in axes.get_yticklabels()][2] == r"a & b \$x_1\$"  # no mathematics


def test_confusion_matrix_of_many_classes_has_colours_without_numbers():
    evaluation = evaluation_of(120)
    axes = confusion_matrix(evaluation).axes[0]
    assert len(axes.patches) == np.count_nonzero(evaluation.confusion)
    assert not [text for text in axes.texts if text.get_text().isdigit()]


def test_scores_by_class_are_bars_with_the_interval_of_the_recall(result):
    axes = per_class(result.evaluation).axes[0]
    rows = sorted(result.evaluation.classes, key=lambda score: (score.recall, score.f1))
    assert [bar.get_width() for bar in axes.patches] == [score.recall for score in rows]
    intervals = [[score.recall_low, score.recall_high] for score in rows]
    np.testing.assert_allclose(error_bars(axes)[..., 0], intervals)
    precision, f1 = (marks.get_offsets()[:, 0] for marks in axes.collections if len(marks.get_offsets()) == 4)
    np.testing.assert_allclose(precision, [score.precision for score in rows])
    np.testing.assert_allclose(f1, [score.f1 for score in rows])
    assert axes.get_yticklabels()[-1].get_text().endswith(f"({rows[-1].support})")


@pytest.mark.parametrize("num_classes", [2, 37, 120])
def test_scores_of_at_most_forty_classes_are_drawn_the_lowest_recall_first(num_classes):
    evaluation = evaluation_of(num_classes)
    figure = per_class(evaluation)
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == sorted(score.recall for score in evaluation.classes)[:MAX_CLASSES]
    assert any("lowest recall" in text for text in texts(figure)) == (num_classes > MAX_CLASSES)


def test_reliability_has_a_bar_for_each_bin_of_its_accuracy_and_interval(result):
    figure = reliability(result.evaluation)
    upper, lower = figure.axes
    bins = [b for b in result.evaluation.bins if b.count]
    assert [bar.get_height() for bar in upper.patches] == [b.accuracy for b in bins]
    assert [bar.get_height() for bar in lower.patches] == [b.count for b in bins]
    expected = [wilson_interval(round(b.accuracy * b.count), b.count) for b in bins]
    np.testing.assert_allclose(error_bars(upper)[..., 1], expected, atol=1e-12)
    assert (upper.get_ylabel(), lower.get_xlabel(), lower.get_ylabel()) == ("Accuracy", "Confidence", "Images")
    assert {"perfect calibration", "accuracy", "mean confidence", "95% interval"} <= set(texts(figure))
    assert any(f"ECE {result.evaluation.ece:.3f}" in text for text in texts(figure))


def test_risk_coverage_curve_has_the_risk_at_each_coverage_and_the_threshold(result):
    evaluation, threshold = result.evaluation, result.analysis.threshold
    axes = risk_coverage_curve(evaluation, threshold).axes[0]
    np.testing.assert_allclose(
        axes.lines[0].get_xydata(), np.c_[risk_coverage(evaluation.confidences, evaluation.correct)]
    )
    (point,) = axes.collections[-1].get_offsets()
    assert tuple(point) == pytest.approx((threshold.coverage, 1 - threshold.precision))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Coverage", "Risk (error rate)")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[-1].startswith(f"threshold {threshold.confidence:.2f}: coverage {threshold.coverage:.0%}")
    assert len(risk_coverage_curve(evaluation).axes[0].get_legend().get_texts()) == len(labels) - 1


def test_plots_of_perfect_predictions_have_no_errors_in_them():
    labels = np.arange(12) % 4
    evaluation = evaluate(50 * np.eye(4)[labels], labels, HOSTILE)
    plots = figures(evaluation)
    assert "12 of 12 images correct" in texts(plots["confusion_matrix"])
    assert not plots["risk_coverage"].axes[0].lines[0].get_ydata().any()


def test_plotting_leaves_matplotlibs_settings_and_pyplot_alone(result):
    before = dict(matplotlib.rcParams)
    style.to_svg(confusion_matrix(result.evaluation))
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
