"""Figures made of images: the most confident mistakes, what the network looked at, nearest training images."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.neighbors import NearestImages
from vitcifar.report import style


def most_confident_mistakes(labels: np.ndarray, probabilities: np.ndarray, limit: int = 24) -> np.ndarray:
    """Positions of the wrong answers, the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:limit]


def mistakes_gallery(dataset: ImageDataset, probabilities: np.ndarray, limit: int = 24, columns: int = 6) -> Figure:
    """The most confident wrong answers: image, answer with its confidence, true class with its own."""
    chosen = most_confident_mistakes(dataset.labels, probabilities, limit)
    if not len(chosen):
        return _nothing("Most confident mistakes", "No image was answered wrongly.")
    rows = -(-len(chosen) // columns)
    figure = style.new_figure(columns * 1.5, rows * 1.95 + 0.75, pad=0.06)
    style.heading(figure, "Most confident mistakes", "answer and its confidence; below, the true class and what it got")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, index in zip(grid, chosen, strict=False):
        answer, label = int(probabilities[index].argmax()), int(dataset.labels[index])
        show_image(axes, dataset.images[index])
        caption(axes, f"{dataset.class_names[answer]}  {probabilities[index, answer]:.0%}", style.RED, 0)
        caption(axes, f"{dataset.class_names[label]}  {probabilities[index, label]:.0%}", style.MUTED, 1)
    return figure


def show_image(axes: Axes, image: np.ndarray) -> None:
    """One uint8 (H, W, 3) image; small ones keep their sharp pixels."""
    axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) <= 96 else "antialiased")
    axes.axis("off")


def caption(axes: Axes, text: str, colour: str, line: int) -> None:
    """A line of text below an image."""
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


def attention_gallery(
    dataset: ImageDataset, probabilities: np.ndarray, maps: np.ndarray, places: np.ndarray, columns: int = 4
) -> Figure:
    """Images at `places` beside what their answers were made from; maps (len(places), rows, columns) of patches."""
    rows = -(-len(places) // columns)
    figure = style.new_figure(columns * 2.35, rows * 1.6 + 0.75, pad=0.05)
    style.heading(
        figure, "Where the network looked", "attention rollout; red: a wrong answer, and the true class below"
    )
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for position, (place, patches) in enumerate(zip(places, maps, strict=True)):
        left, right = grid[position // columns, 2 * (position % columns) :][:2]
        image, label = dataset.images[place], int(dataset.labels[place])
        answer = int(probabilities[place].argmax())
        show_image(left, image)
        show_image(right, highlight(image, patches))
        told = f"{dataset.class_names[answer]}  {probabilities[place, answer]:.0%}"
        caption(left, told, style.BLUE if answer == label else style.RED, 0)
        if answer != label:
            caption(left, dataset.class_names[label], style.MUTED, 1)
    return figure


def highlight(image: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """The image, dark where the map of patches is low: uint8, its longer side at least 128 pixels."""
    grow = max(1, -(-128 // max(image.shape[:2])))
    large = image.repeat(grow, axis=0).repeat(grow, axis=1)
    weights = overlay_weights(patches, *large.shape[:2])[..., None]
    return np.round(large * (0.25 + 0.75 * weights)).astype(np.uint8)


def nearest_gallery(dataset: ImageDataset, nearest: NearestImages) -> Figure:
    """The images, one a row, each with its nearest training images."""
    rows, k = nearest.indices.shape
    train = nearest.train
    figure = style.new_figure(1.45 * (k + 1), 1.75 * rows + 0.75, pad=0.06)
    style.heading(figure, "Nearest training images", "left: the image and its class; green: the same class")
    grid = figure.subplots(rows, k + 1, squeeze=False)
    for row, place in enumerate(nearest.queries):
        label = int(dataset.labels[place])
        show_image(grid[row, 0], dataset.images[place])
        caption(grid[row, 0], dataset.class_names[label], style.INK, 0)
        for axes, index, cosine in zip(grid[row, 1:], nearest.indices[row], nearest.cosines[row], strict=True):
            show_image(axes, train.images[index])
            same = int(train.labels[index]) == label
            told = f"{train.class_names[train.labels[index]]}  {cosine:.2f}"
            caption(axes, told, style.GREEN if same else style.RED, 0)
    return figure


def overlay_weights(patches: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map stretched to the image, smooth, between 0 and 1: (height, width)."""
    spread = (patches - patches.min()) / max(float(patches.max() - patches.min()), 1e-12)
    grown = Image.fromarray(spread.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(grown, np.float64), 0, 1)
