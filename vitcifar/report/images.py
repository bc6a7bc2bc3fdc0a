"""Sections of images: errors, regressions, attention and nearest training images; and their tiles as one sheet."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from vitcifar.data.contact_sheet import Tile, Tone, tile_sheet
from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.analysis import NearestImages
from vitcifar.evaluation.compare import Comparison
from vitcifar.report.html import Section

CROWDED = 0.98  # where all cosines are above it, their order says little


def sheet(section: Section) -> Image.Image:
    """The tiles of a section as one image, for MLflow and TensorBoard."""
    return tile_sheet(section.tiles, columns=section.columns or 6, title=section.title, note=section.text)


def errors_section(dataset: ImageDataset, probabilities: np.ndarray) -> Section:
    """The most confident errors; probabilities (N, K)."""
    errors = np.flatnonzero(probabilities.argmax(axis=1) != dataset.labels)
    shown = most_confident(errors, probabilities)
    text = f"{len(shown)} of {len(errors):,} errors, the most confident first. Check them for wrong labels, too."
    return Section(
        title="Most confident errors",
        text=text if len(errors) else "No image is misclassified.",
        tiles=[prediction_tile(dataset, probabilities, index) for index in shown],
    )


def regressions_section(dataset: ImageDataset, probabilities: np.ndarray, comparison: Comparison) -> Section:
    """Images that only the second model classifies correctly; probabilities (N, K) are the first's."""
    shown = most_confident(comparison.lost, probabilities)
    return Section(
        title="Regressions",
        text=f"{len(shown)} of {len(comparison.lost):,} images that only {comparison.names[1]} classifies correctly.",
        tiles=[prediction_tile(dataset, probabilities, index) for index in shown],
    )


def attention_section(dataset: ImageDataset, probabilities: np.ndarray, maps: Mapping[int, np.ndarray]) -> Section:
    """Images beside their attention rollout; maps of patches by the index of the image."""
    tiles = []
    for index, patches in maps.items():
        tiles.append(prediction_tile(dataset, probabilities, index))
        tiles.append(Tile(image=highlight(dataset.images[index], patches), title="attention"))
    return Section(
        title="Attention rollout",
        text="Each image beside the attention of its prediction to the patches, through all layers: bright = high.",
        tiles=tiles,
        columns=6,
        logged_as="analysis/attention",
    )


def nearest_section(dataset: ImageDataset, probabilities: np.ndarray, nearest: NearestImages) -> Section:
    """Errors with the training images whose embeddings are nearest."""
    train, tiles = nearest.train, []
    scale = "The cosine is that of embeddings less their mean: 1 is the same direction, 0 unrelated."
    if crowded := bool(nearest.cosines.min() > CROWDED):
        scale = f"All of them have a cosine above {CROWDED}: the embeddings hardly tell images apart."
    for query, indices, cosines in zip(nearest.queries.tolist(), nearest.indices, nearest.cosines, strict=True):
        tiles.append(prediction_tile(dataset, probabilities, query))
        for index, cosine in zip(indices, cosines, strict=True):
            name, note = train.class_names[train.labels[index]], "" if crowded else f"cosine {cosine:.2f}"
            tone: Tone = "good" if train.labels[index] == dataset.labels[query] else "bad"
            tiles.append(Tile(image=train.images[index], title=name, note=note, id=train.ids[index], tone=tone))
    return Section(
        title="Nearest training images",
        text=f"Each error, followed by the training images nearest to it; green: of its true class. {scale}",
        tiles=tiles,
        columns=1 + nearest.indices.shape[1],
        logged_as="analysis/nearest",
    )


def most_confident(indices: np.ndarray | tuple[int, ...], probabilities: np.ndarray, limit: int = 24) -> list[int]:
    """The indices sorted by the confidence of their predictions, the most confident first; probabilities (N, K)."""
    return sorted(map(int, indices), key=lambda index: -float(probabilities[index].max()))[:limit]


def prediction_tile(dataset: ImageDataset, probabilities: np.ndarray, index: int) -> Tile:
    """One image with its prediction and, when that is wrong, the true class; probabilities (N, K)."""
    names, label, prediction = dataset.class_names, int(dataset.labels[index]), int(probabilities[index].argmax())
    return Tile(
        image=dataset.images[index],
        title=f"{names[prediction]} ({probabilities[index, prediction]:.0%})",
        note="" if prediction == label else f"true: {names[label]} ({probabilities[index, label]:.0%})",
        id=dataset.ids[index],
        tone="good" if prediction == label else "bad",
    )


def highlight(image: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """The image, dark where the map of patches is low: uint8, its longer side at least 128 pixels."""
    grow = max(1, -(-128 // max(image.shape[:2])))
    large = image.repeat(grow, axis=0).repeat(grow, axis=1)
    weights = overlay_weights(patches, *large.shape[:2])[..., None]
    return np.round(large * (0.25 + 0.75 * weights)).astype(np.uint8)


def overlay_weights(patches: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map of patches scaled to the image, smooth, between 0 and 1: (height, width)."""
    normalized = (patches - patches.min()) / max(float(patches.max() - patches.min()), 1e-12)
    scaled = Image.fromarray(normalized.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(scaled, np.float64), 0, 1)
