"""Plots of the analysis say its numbers: accuracies, intervals and their labels."""

import dataclasses

import numpy as np
import pytest
from support.reports import texts

from vitcifar.report import style
from vitcifar.report.plots import comparison_chart, ood_chart, robustness_heatmap, slice_chart


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
    assert "mean accuracy 55.0%, clean 80.0%; darker: larger loss" in texts(axes.figure)
    lightness = {p.get_xy(): sum(p.get_facecolor()[:3]) for p in axes.patches}
    assert min(lightness, key=lightness.get)[0] == pytest.approx(1 - 0.47)  # 25% is the darkest


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
    assert any(f"only champion correct: {len(comparison.lost)}" in text for text in texts(axes.figure))
    without = comparison_chart(dataclasses.replace(comparison, margin=0.0)).axes[0]
    assert len(without.lines) == len(axes.lines) - 1
