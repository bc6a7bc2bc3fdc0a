"""Plots of an evaluation and of its analysis; each says its numbers, and what they are measured on."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vitcifar.evaluation.analysis import Analysis
from vitcifar.evaluation.calibration import apply_threshold, best_aurc, risk_coverage, wilson_interval
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.corruptions import Robustness
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import OODScore
from vitcifar.evaluation.slices import Slice
from vitcifar.report import style
from vitcifar.report.findings import share

MAX_CLASSES = 40  # whose names or scores one plot shows
MAX_COUNTS = 15  # classes of a confusion matrix with its counts
MAX_MARKERS = 40  # epochs of a curve with a mark for each
Curve = Sequence[tuple[int, float]]  # (step, value), one at the end of each epoch


def figures(evaluation: Evaluation) -> dict[str, Figure]:
    """Every plot of one evaluation by its name."""
    return {
        "confusion_matrix": confusion_matrix(evaluation),
        "per_class": per_class(evaluation),
        "reliability": reliability(evaluation),
        "risk_coverage": risk_coverage_curve(evaluation),
    }


def analysis_figures(evaluation: Evaluation, analysis: Analysis) -> dict[str, Figure]:
    """Every plot of an analysis by its name; each shows what no plot of the evaluation does."""
    found = {}
    if analysis.slices:
        found["slices"] = slice_chart(analysis.slices, evaluation.accuracy)
    if analysis.robustness:
        found["robustness"] = robustness_heatmap(analysis.robustness)
    if analysis.ood:
        found["ood"] = ood_chart(analysis.ood)
    return found


def training_curves(curves: Mapping[str, Curve], best_epoch: int) -> Figure:
    """Loss and accuracy of training and validation images after each epoch; the best epoch counts from 1."""
    figure = style.new_figure(8.6, 3.5)
    panels = figure.subplots(1, 2)
    for axes, quantity in zip(panels, ("loss", "accuracy"), strict=True):
        for split, colour, dashes in (("train", style.ORANGE, style.DASHED), ("validation", style.BLUE, "-")):
            values = [value for _, value in curves.get(f"{split}/{quantity}", ())]
            epochs = range(1, len(values) + 1)
            marker = "o" if len(values) <= MAX_MARKERS else ""
            axes.plot(epochs, values, color=colour, linestyle=dashes, marker=marker, markersize=3.5, label=split)
        axes.axvline(best_epoch, color=style.MUTED, linewidth=1, linestyle=style.DOTTED)
        best = curves.get(f"validation/{quantity}", ())[best_epoch - 1 : best_epoch]
        note = f"epoch {best_epoch}: {best[0][1]:.3f} on validation" if best else ""
        style.dress(axes, quantity.capitalize(), note=note)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="Epoch")
    panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    style.legend(figure, panels[0], columns=2)
    return figure


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Counts, coloured by their share of the true class: right green, wrong orange; of many classes colours alone."""
    confusion, size = evaluation.confusion, len(evaluation.class_names)
    side = float(np.clip(2.8 + 0.48 * size, 4.6, 10))
    figure = style.new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # The scale of errors rises as the square root, so that even one of them is visible.
    colours = np.where(np.eye(size, dtype=bool)[..., None], style.RIGHT(share), style.WRONG(share**0.5))  # (K, K, 4)
    colours[confusion == 0] = to_rgba(style.PANEL if size <= MAX_CLASSES else style.PAPER)
    if size <= MAX_COUNTS:
        for (row, column), count in np.ndenumerate(confusion):
            text = str(count) if count else ""
            style.cell(axes, column, row, colours[row, column], text, size=9.5, bold=row == column)
    else:
        axes.imshow(colours, interpolation="nearest")
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    axes.set(xlabel="Predicted class", ylabel="True class")
    note = f"{int(np.trace(confusion)):,} of {evaluation.num_images:,} images correct"
    style.dress(axes, "Confusion matrix", note=note, grid="none")
    if size <= MAX_CLASSES:
        names = style.plain(evaluation.class_names)
        tilt = 0 if size <= 10 and max(map(len, names)) <= 3 else 45
        ha = "right" if tilt else "center"
        mode = "anchor" if tilt else None
        axes.set_xticks(range(size), names, rotation=tilt, ha=ha, rotation_mode=mode, fontfamily=style.fonts())
        axes.set_yticks(range(size), names, fontfamily=style.fonts())
        axes.tick_params(labelsize=max(5.5, min(9.0, 260 / size)))
    return figure


def per_class(evaluation: Evaluation) -> Figure:
    """Recall with its interval, precision and F1 of each class, the lowest recall at the bottom; at most 40 classes."""
    names = dict(zip(evaluation.class_names, style.plain(evaluation.class_names), strict=True))
    predicted = dict(zip(evaluation.class_names, evaluation.confusion.sum(axis=0), strict=True))
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
    precision = [s.precision if predicted[s.name] else np.nan for s in rows]  # 0 / 0 has no mark
    axes.scatter(precision, y, marker="D", s=30, color=style.ORANGE, zorder=3, label="precision")
    axes.scatter([s.f1 for s in rows], y, marker="o", s=30, color=style.INK, zorder=3, label="F1")
    axes.axvline(evaluation.recall_macro, color=style.MUTED, linewidth=1, linestyle=style.DASHED)
    labels = [f"{names[score.name]}  ({score.support})" for score in rows]
    axes.set_yticks(y, labels, fontfamily=style.fonts())
    axes.set(xlim=(0, 1.02), ylim=(-0.6, len(rows) - 0.4))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    style.dress(axes, "Recall, precision and F1 by class", note=note, grid="x")
    style.legend(figure, axes, columns=4)
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """Accuracy in each bin of confidence above the number of images in it (Guo et al. 2017)."""
    bins = [b for b in evaluation.bins if b.count]
    figure = style.new_figure(4.3, 4.9)
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


def risk_coverage_curve(evaluation: Evaluation) -> Figure:
    """Error rate among the most confident images against their share, with the threshold if one was chosen."""
    threshold = apply_threshold(evaluation.confidences, evaluation.correct, evaluation.threshold, target=0)
    coverage, risk = risk_coverage(evaluation.confidences, evaluation.correct)
    _, best = risk_coverage(evaluation.correct.astype(float), evaluation.correct)
    figure = style.new_figure(4.3, 4.9)
    axes = figure.add_subplot()
    axes.fill_between(coverage, risk, color=style.BLUE, alpha=0.12, linewidth=0)
    axes.plot(coverage, risk, color=style.BLUE, linewidth=2, label="ranked by confidence")
    axes.plot(coverage, best, color=style.MUTED, linewidth=1.2, linestyle=style.DASHED, label="optimal ranking")
    if evaluation.threshold and threshold.num_answered:
        label = f"threshold {threshold.text}: coverage {share(threshold.coverage)}, "
        label += f"precision {threshold.precision:.1%}"
        axes.scatter([threshold.coverage], [1 - threshold.precision], s=46, color=style.INK, zorder=4, label=label)
    axes.set(xlim=(0, 1), ylim=(0, max(0.02, float(risk.max()) * 1.15)), xlabel="Coverage", ylabel="Risk (error rate)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    note = f"AURC {evaluation.aurc:.4f}, optimal {best_aurc(evaluation.correct):.4f}"
    style.dress(axes, "Risk-coverage curve", note=note)
    style.legend(figure, axes, columns=1)
    return figure


def robustness_heatmap(robustness: Robustness) -> Figure:
    """Accuracy of every corruption at every severity, the most harmful corruption last."""
    order = np.argsort(-robustness.accuracy.mean(axis=1), kind="stable")
    grid = np.c_[robustness.accuracy[order], robustness.accuracy[order].mean(axis=1)]
    columns = [*map(str, robustness.severities), "mean"]
    last = len(columns) - 1
    figure = style.new_figure(3.6 + 0.62 * len(columns), 1.7 + 0.31 * len(order))
    axes = figure.add_subplot()
    for (row, column), value in np.ndenumerate(grid):
        colour = style.WRONG(1 - value)  # one scale for every run
        style.cell(axes, column + 0.12 * (column == last), row, colour, f"{value:.0%}", bold=column == last)
    axes.set(xlim=(-0.5, last + 0.64), ylim=(len(order) - 0.5, -0.5), xlabel="Severity")
    axes.set_xticks([*range(last), last + 0.12], columns)
    axes.set_yticks(range(len(order)), [robustness.names[index].replace("_", " ") for index in order])
    interval = "{:.0%} to {:.0%}".format(*robustness.interval(robustness.mean_accuracy))
    note = (
        f"mean {robustness.mean_accuracy:.1%} ({interval}), clean {robustness.clean_accuracy:.1%}; darker: more errors"
    )
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
