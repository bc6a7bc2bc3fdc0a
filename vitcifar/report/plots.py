"""The figures of a run, each a matplotlib Figure of its own; `figures` makes and names all of them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.calibration import Threshold, best_aurc, risk_coverage, wilson_interval
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.report import style
from vitcifar.report.galleries import mistakes_gallery

MOST_CLASSES = 40  # that a figure tells one by one


def figures(evaluation: Evaluation, dataset: ImageDataset, probabilities: np.ndarray) -> dict[str, Figure]:
    """Every figure of one evaluation by its name; probabilities are (N, K)."""
    return {
        "confusion_matrix": confusion_matrix(evaluation),
        "per_class": per_class(evaluation),
        "reliability": reliability(evaluation),
        "risk_coverage": risk_coverage_curve(evaluation),
        "mistakes": mistakes_gallery(dataset, probabilities),
    }


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Counts, coloured by their share of the true class: right answers blue, wrong ones orange."""
    confusion, names = evaluation.confusion, evaluation.class_names
    size = len(names)
    side = float(np.clip(2.8 + 0.48 * size, 4.6, 16))
    figure = style.new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for row, column in np.ndindex(size, size):
        _cell(figure, row, column, int(confusion[row, column]), float(share[row, column]), size)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal", xlabel="Answer", ylabel="True class")
    tilt = 0 if size <= 10 and max(map(len, names)) <= 3 else 45
    ha = "right" if tilt else "center"
    axes.set_xticks(range(size), _short(names), rotation=tilt, ha=ha, rotation_mode="anchor" if tilt else None)
    axes.set_yticks(range(size), _short(names))
    right, total = int(np.trace(confusion)), int(confusion.sum())
    style.dress(axes, "Confusion matrix", note=f"{right} of {total} images right", grid="none")
    axes.tick_params(labelsize=max(4.0, min(9.0, 260 / size)))
    return figure


def _cell(figure: Figure, row: int, column: int, count: int, share: float, size: int) -> None:
    axes = figure.axes[0]
    # Even one wrong answer should be seen, so the ramp of mistakes rises as the square root.
    ramp = style.BLUES(share) if row == column else style.ORANGES(share**0.5)
    colour = ramp if count else style.PANEL
    if count or size <= MOST_CLASSES:
        axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour, linewidth=0))
    if count and size <= MOST_CLASSES:
        axes.text(
            column,
            row,
            str(count),
            ha="center",
            va="center",
            fontsize=max(4.0, min(10.0, 140 / size)),
            color=style.text_on(colour),
            fontweight="bold" if row == column else "normal",
        )


def per_class(evaluation: Evaluation) -> Figure:
    """Recall with its interval, precision and F1 of each class, the lowest recall at the bottom; at most 40 classes."""
    rows = sorted(evaluation.classes, key=lambda score: (score.recall, score.f1))[:MOST_CLASSES]
    note = f"number of images in brackets; mean recall {evaluation.recall_macro:.1%}"
    if len(rows) < len(evaluation.classes):
        note += f"; the {len(rows)} of {len(evaluation.classes)} classes with the lowest recall"
    figure = style.new_figure(7.6, 1.5 + 0.36 * len(rows))
    axes = figure.add_subplot()
    at = np.arange(len(rows))
    recall = np.array([score.recall for score in rows])
    reach = np.array([[s.recall - s.recall_low, s.recall_high - s.recall] for s in rows]).clip(0).T
    axes.barh(at, recall, height=0.62, color=style.BLUE, alpha=0.9, label="recall")
    axes.errorbar(
        recall, at, xerr=reach, fmt="none", ecolor=style.INK, elinewidth=1.1, capsize=2.5, label="95% interval"
    )
    axes.scatter([s.precision for s in rows], at, marker="D", s=30, color=style.ORANGE, zorder=3, label="precision")
    axes.scatter([s.f1 for s in rows], at, marker="o", s=30, color=style.GREEN, zorder=3, label="F1")
    axes.axvline(evaluation.recall_macro, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(at, [f"{_short([score.name])[0]}  ({score.support})" for score in rows])
    axes.set(xlim=(0, 1.02), ylim=(-0.6, len(rows) - 0.4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    style.dress(axes, "Recall, precision and F1", note=note, grid="x")
    axes.tick_params(axis="y", labelcolor=style.INK)
    _legend(figure, axes.get_legend_handles_labels(), columns=4)
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """How often answers were right at each confidence, and how many answers had it (Guo et al. 2017)."""
    bins = [b for b in evaluation.bins if b.count]
    figure = style.new_figure(5.6, 6.2)
    upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)), label="as often right as sure")
    middle = np.array([(b.low + b.high) / 2 for b in bins])
    width = 0.9 / len(evaluation.bins)
    right = np.array([b.accuracy for b in bins])
    intervals = np.array([wilson_interval(round(b.accuracy * b.count), b.count) for b in bins])
    reach = np.abs(intervals.T - right)
    upper.bar(middle, right, width, color=style.BLUE, alpha=0.9, label="share right")
    upper.errorbar(middle, right, yerr=reach, fmt="none", ecolor=style.INK, elinewidth=1, label="95% interval")
    sure = [b.confidence for b in bins]
    upper.hlines(sure, middle - width / 2, middle + width / 2, color=style.ORANGE, linewidth=3, label="mean confidence")
    lower.bar(middle, [b.count for b in bins], width, color=style.MUTED)
    note = f"ECE {evaluation.ece:.3f}, Brier {evaluation.brier:.3f}, temperature {evaluation.temperature:.2f}"
    style.dress(upper, "Reliability", note=note)
    style.dress(lower)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="Share right")
    lower.set(xlabel="Confidence", ylabel="Images")
    for axis in (upper.yaxis, lower.xaxis):
        axis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _legend(figure, upper.get_legend_handles_labels(), columns=2)
    return figure


def risk_coverage_curve(evaluation: Evaluation, threshold: Threshold | None = None) -> Figure:
    """Share of wrong answers when only the most confident are given; with the threshold, if one was chosen."""
    coverage, risk = risk_coverage(evaluation.confidences, evaluation.correct)
    _, best = risk_coverage(evaluation.correct.astype(float), evaluation.correct)
    figure = style.new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    axes.fill_between(coverage, risk, color=style.BLUE, alpha=0.12, linewidth=0)
    axes.plot(coverage, risk, color=style.BLUE, linewidth=2, label="this model")
    axes.plot(coverage, best, color=style.MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="best possible order")
    if threshold is not None and threshold.num_answered:
        told = f"{threshold.coverage:.0%} answered, {threshold.precision:.1%} of them right"
        label = f"confidence at least {threshold.confidence:.2f}: {told}"
        axes.scatter([threshold.coverage], [1 - threshold.precision], s=46, color=style.RED, zorder=4, label=label)
    axes.set(xlim=(0, 1), ylim=(0, max(0.02, float(risk.max()) * 1.15)), xlabel="Share of images answered")
    axes.set_ylabel("Share wrong among them")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    note = f"area {evaluation.aurc:.4f}, best possible {best_aurc(evaluation.correct):.4f}"
    style.dress(axes, "Answering only when sure", note=note)
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor=style.MUTED)
    return figure


def _legend(figure: Figure, handles_and_labels: tuple[list, list], columns: int) -> None:
    figure.legend(
        *handles_and_labels,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=style.MUTED,
        handletextpad=0.5,
        columnspacing=1.6,
    )


def _short(names: Sequence[str], longest: int = 18) -> list[str]:
    """Names that fit beside a figure, with nothing in them that matplotlib reads as a formula."""
    cut = [name if len(name) <= longest else name[: longest - 1] + "…" for name in names]
    return [name.replace("$", r"\$") for name in cut]
