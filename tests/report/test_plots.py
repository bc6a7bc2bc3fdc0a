"""Plots of an evaluation and its analysis say their numbers."""

import dataclasses
import re
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.container import ErrorbarContainer
from support.project import ROOT
from support.reports import HOSTILE, NUM, many_classes, texts

from vitcifar.data.contact_sheet import COLOURS
from vitcifar.evaluation.calibration import risk_coverage, wilson_interval
from vitcifar.evaluation.metrics import evaluate
from vitcifar.report import style
from vitcifar.report.plots import (
    MAX_CLASSES,
    comparison_chart,
    confusion_matrix,
    figures,
    ood_chart,
    per_class,
    reliability,
    risk_coverage_curve,
    robustness_heatmap,
    slice_chart,
)


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


@pytest.mark.parametrize("num_classes", [30, 120])
def test_confusion_matrix_of_many_classes_has_colours_without_numbers(num_classes):
    evaluation = evaluation_of(num_classes)
    axes = confusion_matrix(evaluation).axes[0]
    pixels = axes.images[0].get_array()
    paper = to_rgba(style.PANEL if num_classes == 30 else style.PAPER)
    assert np.array_equal((pixels != paper).any(axis=2), evaluation.confusion > 0)
    assert not [text for text in axes.texts if text.get_text().isdigit()]
    assert ("class number 1 wi…" in tick_labels(axes.yaxis)) == (num_classes == 30)


def test_right_is_green_and_wrong_is_red_as_in_the_report_and_in_contact_sheets():
    css = (ROOT / "vitcifar/report/report.css").read_text()
    light, dark = re.findall(r"--good: (#\w+); --bad: (#\w+)", css)
    assert light == (style.GREEN, style.RED) == (COLOURS["good"], COLOURS["bad"])
    assert dark == (style.DARK[style.GREEN], style.DARK[style.RED])
    assert [to_hex(scale(1.0)) for scale in (style.RIGHT, style.WRONG)] == [*light]
    labels = np.array([0, 0, 1, 1])
    figure = confusion_matrix(evaluate(9 * np.eye(2)[[0, 0, 0, 0]], labels, ("a", "b")))
    assert [to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches[::2]] == [*light]


def test_names_that_no_font_here_draws_are_numbers_and_nothing_complains():
    evaluation, _, _ = many_classes(30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in figures(evaluation).values():
            figure.canvas.draw()
            style.to_svg(figure)
    assert style.plain(["cat", "\U000f0000", "собака", "עורב"]) == ["cat", "class 1", "собака", "עורב"]


def test_a_class_that_is_never_predicted_has_no_mark_of_its_precision():
    axes = per_class(evaluate(9 * np.eye(2)[[0, 0, 0]], np.array([0, 0, 1]), ("a", "b"))).axes[0]
    precision = next(marks for marks in axes.collections if marks.get_label() == "precision").get_offsets()[:, 0]
    assert np.ma.getmaskarray(precision).tolist() == [True, False]


def test_a_figure_in_a_report_is_dark_where_the_reader_prefers_that(result):
    svg = style.to_svg(reliability(result.evaluation))
    assert not re.findall(f': ({"|".join(style.DARK)})[;"]', svg) and f": var(--c{style.INK[1:]})" in svg
    light, dark = re.search(
        r"svg\{(.*?)\}@media screen and \(prefers-color-scheme: dark\)\{svg\{(.*?)\}\}", svg
    ).groups()
    assert f"--c{style.INK[1:]}:{style.INK}" in light and f"--c{style.INK[1:]}:{style.DARK[style.INK]}" in dark


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
    figure = risk_coverage_curve(dataclasses.replace(evaluation, threshold=threshold.confidence))
    axes = figure.axes[0]
    np.testing.assert_allclose(
        axes.lines[0].get_xydata(), np.c_[risk_coverage(evaluation.confidences, evaluation.correct)]
    )
    (point,) = axes.collections[-1].get_offsets()
    assert tuple(point) == pytest.approx((threshold.coverage, 1 - threshold.precision))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Coverage", "Risk (error rate)")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-1].startswith(f"threshold {threshold.confidence:.3f}: coverage {threshold.coverage:.1%}, ")
    for threshold in (0.0, None):  # off, never confident
        curve = risk_coverage_curve(dataclasses.replace(evaluation, threshold=threshold))
        assert len(curve.legends[0].get_texts()) == len(labels) - 1


def test_plots_of_perfect_predictions_have_no_errors_in_them():
    labels = np.arange(12) % 4
    evaluation = evaluate(50 * np.eye(4)[labels], labels, HOSTILE)
    plots = figures(evaluation)
    assert "12 of 12 images correct" in texts(plots["confusion_matrix"])
    assert not plots["risk_coverage"].axes[0].lines[0].get_ydata().any()


def test_plotting_leaves_matplotlibs_settings_and_pyplot_alone(result):
    def figures():
        return sys.modules["matplotlib.pyplot"].get_fignums() if "matplotlib.pyplot" in sys.modules else []

    before = dict(matplotlib.rcParams), figures()  # other tests leave some
    style.to_svg(confusion_matrix(result.evaluation))
    assert (dict(matplotlib.rcParams), figures()) == before


def intervals(axes):
    """The horizontal lines of a plot from the bottom: their two ends."""
    lines = [line.get_xydata() for line in axes.lines]
    return [(ends[0, 0], ends[1, 0]) for ends in lines if len(ends) == 2 and ends[0, 1] == ends[1, 1]]


def points(axes):
    return [tuple(marks.get_offsets()[0]) for marks in axes.collections]


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_robustness_has_a_cell_for_each_corruption_and_severity_the_most_harmful_last(result):
    accuracy = np.array([[0.5, 0.25], [0.75, 0.7]])
    robustness = dataclasses.replace(result.analysis.robustness, accuracy=accuracy, clean_accuracy=0.8)
    axes = robustness_heatmap(robustness).axes[0]
    cells = sorted((text.get_position()[::-1], text.get_text()) for text in axes.texts if text.get_text()[0].isdigit())
    assert [text for _, text in cells] == ["75%", "70%", "72%", "50%", "25%", "38%"]
    assert tick_labels(axes.yaxis) == ["contrast", "fog"] and tick_labels(axes.xaxis) == ["1", "5", "mean"]
    assert axes.get_xlabel() == "Severity" and len(axes.patches) == 6
    low, high = wilson_interval(round(0.55 * robustness.num_images), robustness.num_images)
    note = f"mean 55.0% ({low:.0%} to {high:.0%}), clean 80.0%; darker: more errors"
    assert note in texts(axes.figure)
    lightness = {p.get_xy(): sum(p.get_facecolor()[:3]) for p in axes.patches}
    assert min(lightness, key=lightness.get)[0] == pytest.approx(1 - 0.47)  # 25% is the darkest
    other = robustness_heatmap(dataclasses.replace(robustness, clean_accuracy=0.3)).axes[0]
    assert [p.get_facecolor() for p in other.patches] == [p.get_facecolor() for p in axes.patches]  # one scale


def test_slices_have_their_accuracies_and_intervals(result):
    slices = result.analysis.slices
    axes = slice_chart(slices, result.evaluation.accuracy).axes[0]
    assert points(axes) == [(row.accuracy, y) for y, row in enumerate(slices[::-1])]
    assert intervals(axes) == [(row.accuracy_low, row.accuracy_high) for row in slices[::-1]]
    expected = [f"{row.property}: {row.name}  ({row.count})" for row in slices[::-1]]
    assert tick_labels(axes.yaxis) == expected and axes.get_xlabel() == "Accuracy"


@pytest.mark.parametrize(("p_value", "weak"), [(0.01, True), (0.2, False)])
def test_only_a_significantly_worse_slice_is_red(result, p_value, weak):
    row = dataclasses.replace(result.analysis.slices[0], accuracy=0.4, p_value=p_value)
    figure = slice_chart([row], accuracy=0.8)
    assert figure.axes[0].lines[0].get_color() == (style.RED if weak else style.BLUE)
    assert any("significantly worse" in text for text in texts(figure)) == weak


def test_ood_scores_have_their_auroc_and_interval(result):
    left, right = ood_chart(result.analysis.ood).axes
    rows = result.analysis.ood[::-1]
    assert points(left) == [(row.auroc, y) for y, row in enumerate(rows)]
    assert intervals(left) == [(row.auroc_low, row.auroc_high) for row in rows]
    assert {f"{row.auroc:.3f}" for row in rows} <= {text.get_text() for text in left.texts}
    best = result.analysis.ood[0]
    assert right.get_title(loc="left") == f"Best score: {best.name.replace('_', ' ')}"
    assert right.lines[0].get_xdata()[0] == best.threshold
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["in-distribution (80)", "out-of-distribution (40)"]


def test_the_histograms_of_a_score_are_shares_of_each_source(result):
    right = ood_chart(result.analysis.ood).axes[1]
    heights = [sum(bar.get_height() for bar in container) for container in right.containers]
    assert heights == pytest.approx([1, 1])


def test_comparison_has_the_difference_its_interval_zero_and_the_margin(result):
    comparison = result.comparison
    axes = comparison_chart(comparison).axes[0]
    assert points(axes) == [pytest.approx((100 * comparison.difference, 0))]
    assert intervals(axes) == [pytest.approx((100 * comparison.difference_low, 100 * comparison.difference_high))]
    verticals = [line.get_xdata()[0] for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[1]]
    assert verticals == [0, pytest.approx(-2)]
    assert axes.get_title(loc="left") == "Worse" and axes.lines[0].get_color() == style.RED
    assert any(f"only version 5 (champion) correct: {len(comparison.lost)}" in text for text in texts(axes.figure))
    without = comparison_chart(dataclasses.replace(comparison, margin=0.0)).axes[0]
    assert len(without.lines) == len(axes.lines) - 1
