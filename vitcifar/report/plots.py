"""Plots of an evaluation and of its analysis; each says its numbers, and what they are measured on."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vitcifar.evaluation.calibration import Threshold, best_aurc, risk_coverage, wilson_interval
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.corruptions import Robustness
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import OODScore
from vitcifar.evaluation.slices import Slice
from vitcifar.report import style

MAX_CLASSES = 40  # whose counts or scores one plot shows


def figures(evaluation: Evaluation) -> dict[str, Figure]:
    """Every plot of one evaluation by its name."""
    return {
        "confusion_matrix": confusion_matrix(evaluation),
        "per_class": per_class(evaluation),
        "reliability": reliability(evaluation),
        "risk_coverage": risk_coverage_curve(evaluation),
    }


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Counts, coloured by their share of the true class: correct predictions blue, wrong ones orange."""
    confusion, names = evaluation.confusion, style.plain(evaluation.class_names)
    size = len(names)
    side = float(np.clip(2.8 + 0.48 * size, 4.6, 16))
    figure = style.new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    many, font = size > MAX_CLASSES, max(4.0, min(10.0, 140 / size))
    for (row, column), count in np.ndenumerate(confusion):
        # The scale of errors rises as the square root, so that even one of them is visible.
        scale = style.BLUES(share[row, column]) if row == column else style.ORANGES(share[row, column] ** 0.5)
        if count:
            style.cell(axes, column, row, scale, "" if many else str(count), size=font, bold=row == column)
        elif not many:
            style.cell(axes, column, row, style.PANEL, bold=False)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    axes.set(xlabel="Predicted class", ylabel="True class")
    tilt = 0 if size <= 10 and max(map(len, names)) <= 3 else 45
    ha = "right" if tilt else "center"
    axes.set_xticks(range(size), names, rotation=tilt, ha=ha, rotation_mode="anchor" if tilt else None)
    axes.set_yticks(range(size), names)
    note = f"{int(np.trace(confusion)):,} of {evaluation.num_images:,} images correct"
    style.dress(axes, "Confusion matrix", note=note, grid="none")
    axes.tick_params(labelsize=max(4.0, min(9.0, 260 / size)))
    return figure


def per_class(evaluation: Evaluation) -> Figure:
    """Recall with its interval, precision and F1 of each class, the lowest recall at the bottom; at most 40 classes."""
    rows = sorted(evaluation.classes, key=lambda score: (score.recall, score.f1))[:MAX_CLASSES]
    note = f"number of images in brackets; dashed: macro recall {evaluation.recall_macro:.1%}"
    if len(rows) < len(evaluation.classes):
        note += f"; the {len(rows)} of {len(evaluation.classes)} classes with the lowest recall"
    figure = style.new_figure(7.6, 1.5 + 0.36 * len(rows))
    axes = figure.add_subplot()
    y = np.arange(len(rows))
    recall = np.array([score.recall for score in rows])
    errors = np.array([[s.recall - s.recall_low, s.recall_high - s.recall] for s in rows]).clip(0).T
    axes.barh(y, recall, height=0.62, color=style.BLUE, alpha=0.9, label="recall")
    bars = {"fmt": "none", "ecolor": style.INK, "elinewidth": 1.1, "capsize": 2.5}
    axes.errorbar(recall, y, xerr=errors, label="95% interval", **bars)  # type: ignore[arg-type]
    axes.scatter([s.precision for s in rows], y, marker="D", s=30, color=style.ORANGE, zorder=3, label="precision")
    axes.scatter([s.f1 for s in rows], y, marker="o", s=30, color=style.GREEN, zorder=3, label="F1")
    axes.axvline(evaluation.recall_macro, color=style.MUTED, linewidth=1, linestyle=style.DASHED)
    axes.set_yticks(y, [f"{style.plain([score.name])[0]}  ({score.support})" for score in rows])
    axes.set(xlim=(0, 1.02), ylim=(-0.6, len(rows) - 0.4))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    style.dress(axes, "Recall, precision and F1 by class", note=note, grid="x")
    style.legend(figure, axes, columns=4)
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """Accuracy in each bin of confidence above the number of images in it (Guo et al. 2017)."""
    bins = [b for b in evaluation.bins if b.count]
    figure = style.new_figure(5.6, 6.2)
    upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1, linestyle=style.DASHED, label="perfect calibration")
    middle = np.array([(b.low + b.high) / 2 for b in bins])
    width = 0.9 / len(evaluation.bins)
    accuracy = np.array([b.accuracy for b in bins])
    intervals = np.array([wilson_interval(round(b.accuracy * b.count), b.count) for b in bins])
    errors = np.abs(intervals.T - accuracy)
    upper.bar(middle, accuracy, width, color=style.BLUE, alpha=0.9, label="accuracy")
    upper.errorbar(middle, accuracy, yerr=errors, fmt="none", ecolor=style.INK, elinewidth=1, label="95% interval")
    confidence = [b.confidence for b in bins]
    ends = middle - width / 2, middle + width / 2
    upper.hlines(confidence, *ends, color=style.ORANGE, linewidth=3, label="mean confidence")
    lower.bar(middle, [b.count for b in bins], width, color=style.MUTED)
    note = f"ECE {evaluation.ece:.3f}, Brier score {evaluation.brier:.3f}, temperature {evaluation.temperature:.2f}"
    style.dress(upper, "Reliability diagram", note=note)
    style.dress(lower)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="Accuracy")
    lower.set(xlabel="Confidence", ylabel="Images")
    for axis in (upper.yaxis, lower.xaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    style.legend(figure, upper, columns=2)
    return figure


def risk_coverage_curve(evaluation: Evaluation, threshold: Threshold | None = None) -> Figure:
    """Error rate among the most confident images against their share, with the threshold if one was chosen."""
    coverage, risk = risk_coverage(evaluation.confidences, evaluation.correct)
    _, best = risk_coverage(evaluation.correct.astype(float), evaluation.correct)
    figure = style.new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    axes.fill_between(coverage, risk, color=style.BLUE, alpha=0.12, linewidth=0)
    axes.plot(coverage, risk, color=style.BLUE, linewidth=2, label="ranked by confidence")
    axes.plot(coverage, best, color=style.MUTED, linewidth=1.2, linestyle=style.DASHED, label="optimal ranking")
    if threshold is not None and threshold.num_answered:
        label = f"threshold {threshold.text}: coverage {threshold.coverage:.0%}, "
        label += f"precision {threshold.precision:.1%}"
        axes.scatter([threshold.coverage], [1 - threshold.precision], s=46, color=style.RED, zorder=4, label=label)
    axes.set(xlim=(0, 1), ylim=(0, max(0.02, float(risk.max()) * 1.15)), xlabel="Coverage", ylabel="Risk (error rate)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    note = f"AURC {evaluation.aurc:.4f}, optimal {best_aurc(evaluation.correct):.4f}"
    style.dress(axes, "Risk-coverage curve", note=note)
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor=style.MUTED)
    return figure


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
    low, high, margin = 100 * comparison.difference_low, 100 * comparison.difference_high, 100 * comparison.margin
    figure = style.new_figure(7.4, 2.4)
    axes = figure.add_subplot()
    colour = {"better": style.GREEN, "worse": style.RED}.get(comparison.outcome, style.MUTED)
    style.interval_row(axes, 0, 100 * comparison.difference, low, high, colour)
    axes.axvline(0, color=style.INK, linewidth=1)
    if margin:
        axes.axvline(-margin, color=style.ORANGE, linewidth=1.4, linestyle=style.DASHED, label="margin")
        axes.legend(loc="upper right", frameon=False, fontsize=8.5, labelcolor=style.MUTED)
    reach = 1.1 * max(1.0, margin, abs(low), abs(high))
    name, other = comparison.names
    xlabel = f"Accuracy of {name} minus {other} (percentage points)"
    axes.set(xlim=(-reach, reach), ylim=(-0.6, 0.6), xlabel=xlabel)
    axes.set_yticks([0], [f"{comparison.confidence:.0%} interval"])
    note = (
        f"only {name} correct: {len(comparison.gained)}; only {other} correct: "
        f"{len(comparison.lost)}; McNemar p = {comparison.p_value:.2g}"
    )
    style.dress(axes, comparison.outcome.capitalize(), note=note, grid="x")
    return figure
