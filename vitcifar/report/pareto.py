"""Accuracy against latency of the variants of a version, with their Pareto front."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vitcifar.report import style

Point = tuple[str, float, float, bool]  # name, p95 in ms, accuracy, passed its checks


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points, fastest first, than which no other is both faster and at least as accurate."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point[1], -point[2])):
        if not front or point[2] > front[-1][2]:
            front.append(point)
    return front


def latency_chart(points: Sequence[Point], *, max_p95_ms: float = 0.0, note: str = "") -> Figure:
    """Every variant as a point; those that passed their checks are filled, and their front is a line."""
    figure = style.new_figure(7.4, 4.6)
    axes = figure.add_subplot()
    for passed, label in ((True, "passed its checks"), (False, "rejected")):
        found = np.array([point[1:3] for point in points if point[3] == passed]).reshape(-1, 2)
        face = style.BLUE if passed else "none"
        axes.scatter(
            found[:, 0],
            found[:, 1],
            s=34,
            facecolors=face,
            edgecolors=style.BLUE if passed else style.MUTED,
            label=label,
        )
    front = pareto_front([point for point in points if point[3]])
    axes.plot([p[1] for p in front], [p[2] for p in front], color=style.BLUE, linewidth=1.2, label="Pareto front")
    for name, p95, accuracy, _ in front:
        where = {"xytext": (4, -11), "textcoords": "offset points"}
        axes.annotate(name, (p95, accuracy), fontsize=7.5, color=style.INK, **where)  # type: ignore[arg-type]
    if max_p95_ms:
        axes.axvline(max_p95_ms, color=style.ORANGE, linewidth=1.4, linestyle=style.DASHED, label="budget")
    axes.set(xlabel="95th percentile of one image (ms)", ylabel="Validation accuracy")
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    style.dress(axes, "Accuracy against latency", note=note)
    style.legend(figure, axes, columns=4)
    return figure
