"""Charts of the checks beyond the scores: robustness, slices, images of another source, two versions compared."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.ood import OODScore
from vitcifar.evaluation.robustness import Robustness
from vitcifar.evaluation.slices import Slice
from vitcifar.report import style


def robustness_heatmap(robustness: Robustness) -> Figure:
    """Accuracy of every corruption at every severity, the most harmful last."""
    order = np.argsort(-robustness.accuracy.mean(axis=1), kind="stable")
    grid = np.c_[robustness.accuracy[order], robustness.accuracy[order].mean(axis=1)]
    columns = [f"{severity}" for severity in robustness.severities] + ["mean"]
    figure = style.new_figure(3.2 + 0.62 * len(columns), 1.7 + 0.31 * len(order))
    axes = figure.add_subplot()
    for (row, column), value in np.ndenumerate(grid):
        colour = style.ORANGES(np.clip(1 - value / max(robustness.clean_accuracy, 1e-9), 0, 1))
        left = column + 0.12 * (column == len(columns) - 1)
        axes.add_patch(Rectangle((left - 0.48, row - 0.46), 0.96, 0.92, facecolor=colour, linewidth=0))
        axes.text(
            left,
            row,
            f"{value:.0%}",
            ha="center",
            va="center",
            fontsize=8.5,
            color=style.text_on(colour),
            fontweight="bold" if column == len(columns) - 1 else "normal",
        )
    axes.set(xlim=(-0.5, len(columns) - 0.36), ylim=(len(order) - 0.5, -0.5), xlabel="Severity")
    axes.set_xticks([*range(len(columns) - 1), len(columns) - 0.88], columns)
    axes.set_yticks(range(len(order)), [robustness.names[place].replace("_", " ") for place in order])
    clean = f"clean images {robustness.clean_accuracy:.1%}; darker: more of that lost"
    note = f"mean {robustness.mean_accuracy:.1%} right, {clean}"
    style.dress(axes, "Corrupted images", note=note, grid="none")
    axes.tick_params(axis="y", labelcolor=style.INK)
    return figure


def slice_chart(slices: Sequence[Slice], accuracy: float) -> Figure:
    """Accuracy of each slice with its interval, against the accuracy of all images."""
    rows = list(slices)[::-1]
    figure = style.new_figure(7.0, 1.6 + 0.34 * len(rows))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        colour = style.RED if _is_weak(row, accuracy) else style.BLUE
        axes.plot([row.accuracy_low, row.accuracy_high], [place] * 2, color=colour, linewidth=2.4, alpha=0.55)
        axes.scatter([row.accuracy], [place], s=46, color=colour, zorder=3)
    axes.axvline(accuracy, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), [f"{row.property}: {row.name}  ({row.count})" for row in rows])
    lowest = min([row.accuracy_low for row in rows], default=0.0)
    axes.set(xlim=(max(0.0, np.floor(lowest * 10) / 10 - 0.02), 1.01), ylim=(-0.6, len(rows) - 0.4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    note = "95% intervals; dashed: all images"
    if any(_is_weak(row, accuracy) for row in rows):
        note += "; red: worse than the rest"
    style.dress(axes, "Kinds of images", note=note, grid="x")
    axes.tick_params(axis="y", labelcolor=style.INK)
    return figure


def _is_weak(row: Slice, accuracy: float) -> bool:
    return row.p_value < 0.05 and row.accuracy < accuracy


def ood_chart(results: Sequence[OODScore]) -> Figure:
    """AUROC of every score, and how the best one spreads over the two sources."""
    best = results[0]
    figure = style.new_figure(8.6, 3.7)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    rows = list(results)[::-1]
    for place, row in enumerate(rows):
        left.plot([row.auroc_low, row.auroc_high], [place] * 2, color=style.BLUE, linewidth=2.4, alpha=0.55)
        left.scatter([row.auroc], [place], s=46, color=style.BLUE, zorder=3)
        left.annotate(
            f"{row.auroc:.3f}",
            (row.auroc, place),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=style.INK,
        )
    left.axvline(0.5, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    left.set_yticks(range(len(rows)), [row.name.replace("_", " ") for row in rows])
    lowest = min(0.45, *(row.auroc_low for row in rows))
    left.set(xlim=(max(0.0, lowest), 1.02), ylim=(-0.5, len(rows) - 0.3), xlabel="AUROC")
    style.dress(left, "Telling another source apart", note="95% intervals; dashed: chance", grid="x")
    left.tick_params(axis="y", labelcolor=style.INK)
    _spread(right, best)
    return figure


def _spread(axes: Axes, best: OODScore) -> None:
    both = np.concatenate([best.inside, best.outside])
    edges = np.linspace(both.min(), both.max() + 1e-9, 31).tolist()
    for values, colour, label in (
        (best.inside, style.BLUE, f"this data ({len(best.inside)})"),
        (best.outside, style.ORANGE, f"other source ({len(best.outside)})"),
    ):
        axes.hist(values, edges, weights=np.full(len(values), 1 / len(values)), color=colour, alpha=0.55, label=label)
    axes.axvline(best.threshold, color=style.INK, linewidth=1)
    note = f"line: 95% of this data lies above, and {best.false_positives:.0%} of the other"
    style.dress(axes, f"Best score: {best.name.replace('_', ' ')}", note=note)
    axes.set(xlabel=best.name.replace("_", " "), ylabel="Share of images")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=style.MUTED)


def comparison_chart(comparison: Comparison) -> Figure:
    """The difference with its interval against zero and the margin, and the images that only one got right."""
    figure = style.new_figure(7.4, 2.4)
    axes = figure.add_subplot()
    colour = {"better": style.GREEN, "worse": style.RED}.get(comparison.outcome, style.MUTED)
    low, high = comparison.difference_low, comparison.difference_high
    axes.plot([100 * low, 100 * high], [0, 0], color=colour, linewidth=3, alpha=0.5)
    axes.scatter([100 * comparison.difference], [0], s=60, color=colour, zorder=3)
    axes.axvline(0, color=style.INK, linewidth=1)
    if comparison.margin:
        axes.axvline(-100 * comparison.margin, color=style.ORANGE, linewidth=1.4, linestyle=(0, (4, 3)))
    axes.set_yticks([0], [f"{comparison.confidence:.0%} interval"])
    reach = 110 * max(0.01, comparison.margin, abs(low), abs(high))
    axes.set(xlim=(-reach, reach), ylim=(-0.6, 0.6), xlabel="Challenger minus champion, points of accuracy")
    note = (
        f"only the challenger right: {comparison.only_challenger_right}; only the champion right: "
        f"{comparison.only_champion_right}; McNemar p = {comparison.p_value:.2g}"
    )
    style.dress(axes, comparison.outcome.capitalize(), note=note, grid="x")
    axes.tick_params(axis="y", labelcolor=style.INK)
    return figure
