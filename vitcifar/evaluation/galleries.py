"""Figures made of pictures: the most confident mistakes, what the network looked at, nearest training pictures."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitcifar.data.pictures import Pictures
from vitcifar.evaluation import style


def most_confident_mistakes(labels: np.ndarray, probabilities: np.ndarray, limit: int = 24) -> np.ndarray:
    """Positions of the wrong answers, the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:limit]


def mistakes_gallery(pictures: Pictures, probabilities: np.ndarray, limit: int = 24, columns: int = 6) -> Figure:
    """The most confident wrong answers: picture, answer with its confidence, true class with its own."""
    chosen = most_confident_mistakes(pictures.labels, probabilities, limit)
    if not len(chosen):
        return _nothing("Most confident mistakes", "No picture was answered wrongly.")
    rows = -(-len(chosen) // columns)
    figure = style.new_figure(columns * 1.5, rows * 1.95 + 0.75, pad=0.06)
    style.heading(figure, "Most confident mistakes", "answer and its confidence; below, the true class and what it got")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, index in zip(grid, chosen, strict=False):
        answer, label = int(probabilities[index].argmax()), int(pictures.labels[index])
        show_picture(axes, pictures.images[index])
        caption(axes, f"{pictures.class_names[answer]}  {probabilities[index, answer]:.0%}", style.RED, 0)
        caption(axes, f"{pictures.class_names[label]}  {probabilities[index, label]:.0%}", style.MUTED, 1)
    return figure


def show_picture(axes: Axes, image: np.ndarray) -> None:
    """One uint8 (H, W, 3) picture; small ones keep their sharp pixels."""
    axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) <= 96 else "antialiased")
    axes.axis("off")


def caption(axes: Axes, text: str, colour: str, line: int) -> None:
    """A line of text below a picture."""
    text = text if len(text) <= 20 else text[:19] + "…"
    axes.annotate(
        text.replace("$", r"\$"),
        (0.5, 0),
        xytext=(0, -4 - 11 * line),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=8.5,
        color=colour,
        fontweight="bold" if line == 0 else "normal",
    )


def _nothing(title: str, sentence: str) -> Figure:
    figure = style.new_figure(6, 1.6)
    axes = figure.add_subplot()
    axes.set(xticks=[], yticks=[])
    style.dress(axes, title, grid="none")
    axes.text(0, 0.6, sentence, fontsize=10, color=style.MUTED, transform=axes.transAxes)
    return figure
