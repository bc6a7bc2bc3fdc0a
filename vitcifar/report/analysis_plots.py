"""Plots of the analysis: corruption robustness, slices, out-of-distribution detection, comparison of two versions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.corruptions import Robustness
from vitcifar.evaluation.metrics import Slice
from vitcifar.evaluation.ood import OODScore
from vitcifar.report import style


def robustness_heatmap(robustness: Robustness) -> Figure:
    """Accuracy of every corruption at every severity, the most harmful corruption last."""
    order = np.argsort(-robustness.accuracy.mean(axis=1), kind="stable")
    grid = np.c_[robustness.accuracy[order], robustness.accuracy[order].mean(axis=1)]
    columns = [*map(str, robustness.severities), "mean"]
    last = len(columns) - 1
    figure = style.new_figure(3.2 + 0.62 * len(columns), 1.7 + 0.31 * len(order))
    axes = figure.add_subplot()
    for (row, column), value in np.ndenumerate(grid):
        colour = style.ORANGES(np.clip(1 - value / max(robustness.clean_accuracy, 1e-9), 0, 1))
        style.cell(axes, column + 0.12 * (column == last), row, colour, f"{value:.0%}", bold=column == last)
    axes.set(xlim=(-0.5, last + 0.64), ylim=(len(order) - 0.5, -0.5), xlabel="Severity")
    axes.set_xticks([*range(last), last + 0.12], columns)
    axes.set_yticks(range(len(order)), [robustness.names[index].replace("_", " ") for index in order])
    note = f"mean accuracy {robustness.mean_accuracy:.1%}, clean {robustness.clean_accuracy:.1%}; darker: larger loss"
    style.dress(axes, "Corruption robustness", note=note, grid="none")
    axes.tick_params(axis="y", labelcolor=style.INK)
    return figure


def slice_chart(slices: Sequence[Slice], accuracy: float) -> Figure:
    """Accuracy of each slice with its interval, against the accuracy on all images."""
    rows = list(slices)[::-1]
    weak = [row.p_value < 0.05 and row.accuracy < accuracy for row in rows]
    figure = style.new_figure(7.0, 1.8 + 0.34 * len(rows))
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        colour = style.RED if weak[y] else style.BLUE
        style.interval_row(axes, y, row.accuracy, row.accuracy_low, row.accuracy_high, colour)
    axes.axvline(accuracy, color=style.MUTED, linewidth=1, linestyle=style.DASHED)
    axes.set_yticks(range(len(rows)), [f"{row.property}: {row.name}  ({row.count})" for row in rows])
    lowest = min([row.accuracy_low for row in rows], default=0.0)
    axes.set(xlim=(max(0.0, np.floor(lowest * 10) / 10 - 0.02), 1.01), ylim=(-0.6, len(rows) - 0.4), xlabel="Accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    note = "95% intervals; dashed: all images" + ("; red: significantly worse than the rest" if any(weak) else "")
    style.dress(axes, "Accuracy by slice", note=note, grid="x")
    axes.tick_params(axis="y", labelcolor=style.INK)
    return figure


def ood_chart(results: Sequence[OODScore]) -> Figure:
    """AUROC of every score, and the distributions of the best one."""
    figure = style.new_figure(8.6, 3.7)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    rows = list(results)[::-1]
    for y, row in enumerate(rows):
        style.interval_row(left, y, row.auroc, row.auroc_low, row.auroc_high, style.BLUE)
        above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        left.annotate(f"{row.auroc:.3f}", (row.auroc, y), fontsize=8.5, color=style.INK, **above)
    left.axvline(0.5, color=style.MUTED, linewidth=1, linestyle=style.DASHED)
    left.set_yticks(range(len(rows)), [row.name.replace("_", " ") for row in rows])
    lowest = min(0.45, *(row.auroc_low for row in rows))
    left.set(xlim=(max(0.0, lowest), 1.02), ylim=(-0.5, len(rows) - 0.3), xlabel="AUROC")
    style.dress(left, "OOD detection", note="95% intervals; dashed: chance", grid="x")
    left.tick_params(axis="y", labelcolor=style.INK)
    _distributions(right, results[0])
    return figure


def _distributions(axes: Axes, score: OODScore) -> None:
    name = score.name.replace("_", " ")
    both = np.concatenate([score.inside, score.outside])
    edges = np.linspace(both.min(), both.max() + 1e-9, 31).tolist()
    for values, colour, label in (
        (score.inside, style.BLUE, f"in-distribution ({len(score.inside)})"),
        (score.outside, style.ORANGE, f"out-of-distribution ({len(score.outside)})"),
    ):
        axes.hist(values, edges, weights=np.full(len(values), 1 / len(values)), color=colour, alpha=0.55, label=label)
    axes.axvline(score.threshold, color=style.INK, linewidth=1)
    note = f"line: 95% true positive rate, {score.false_positives:.0%} false positive rate"
    style.dress(axes, f"Best score: {name}", note=note)
    axes.set(xlabel=name, ylabel="Share of images")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(y=0.25)  # room for the legend
    axes.legend(frameon=False, fontsize=8.5, labelcolor=style.MUTED)


def comparison_chart(comparison: Comparison) -> Figure:
    """The difference in accuracy with its interval, against zero and the margin."""
    low, high = 100 * comparison.difference_low, 100 * comparison.difference_high
    figure = style.new_figure(7.4, 2.4)
    axes = figure.add_subplot()
    colour = {"better": style.GREEN, "worse": style.RED}.get(comparison.outcome, style.MUTED)
    style.interval_row(axes, 0, 100 * comparison.difference, low, high, colour)
    axes.axvline(0, color=style.INK, linewidth=1)
    if comparison.margin:
        axes.axvline(
            -100 * comparison.margin, color=style.ORANGE, linewidth=1.4, linestyle=style.DASHED, label="margin"
        )
        axes.legend(loc="upper right", frameon=False, fontsize=8.5, labelcolor=style.MUTED)
    reach = 1.1 * max(1.0, 100 * comparison.margin, abs(low), abs(high))
    axes.set(xlim=(-reach, reach), ylim=(-0.6, 0.6), xlabel="Accuracy of challenger minus champion (percentage points)")
    axes.set_yticks([0], [f"{comparison.confidence:.0%} interval"])
    note = (
        f"only challenger correct: {len(comparison.gained)}; only champion correct: "
        f"{len(comparison.lost)}; McNemar p = {comparison.p_value:.2g}"
    )
    style.dress(axes, comparison.outcome.capitalize(), note=note, grid="x")
    axes.tick_params(axis="y", labelcolor=style.INK)
    return figure
