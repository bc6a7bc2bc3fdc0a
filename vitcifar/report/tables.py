"""What a run logs of single images: the table of mistakes, and the embeddings of TensorBoard's projector."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vitcifar import tensorboard
from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.analysis import balanced_indices, most_confident
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.run import Run

MAX_MISTAKES = 50  # in the table: each is two files
MAX_PROJECTED = 500  # test images in TensorBoard's projector
THUMBNAIL, SPRITE = 96, 32  # pixels


def columns_of(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """The fields of dataclasses of one kind as columns."""
    return {field.name: [getattr(row, field.name) for row in rows] for field in dataclasses.fields(rows[0])}


def log_mistakes(run: Run, evaluation: Evaluation, dataset: ImageDataset, probabilities: np.ndarray) -> None:
    """Log the most confident mistakes as a table with thumbnails, at most MAX_MISTAKES; probabilities (N, K)."""
    found = most_confident(evaluation, correct=False)[:MAX_MISTAKES]
    if len(found) == 0:
        return
    names, labels = evaluation.class_names, evaluation.labels
    columns: dict[str, list[Any]] = {
        "image": [thumbnail(dataset.images[index]) for index in found],
        "id": [dataset.ids[index] for index in found],
        "label": [names[labels[index]] for index in found],
        "prediction": [names[evaluation.predictions[index]] for index in found],
        "confidence": [round(float(evaluation.confidences[index]), 4) for index in found],
        "probability of label": [round(float(probabilities[index, labels[index]]), 4) for index in found],
    }
    run.log_table("evaluation/mistakes", columns)


def thumbnail(image: np.ndarray) -> Image.Image:
    """An image uint8 (H, W, 3) for a table: its longer side is THUMBNAIL pixels."""
    shown = Image.fromarray(image)
    factor = THUMBNAIL / max(shown.size)
    width, height = (max(1, round(side * factor)) for side in shown.size)
    return shown.resize((width, height), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def log_projector(run: Run, evaluation: Evaluation, dataset: ImageDataset, embeddings: np.ndarray) -> None:
    """Log the embeddings (N, D) of the test images for TensorBoard's projector, at most MAX_PROJECTED of them."""
    shown = balanced_indices(dataset.labels, MAX_PROJECTED)
    names = evaluation.class_names
    columns = {
        "label": [names[evaluation.labels[index]] for index in shown],
        "prediction": [names[evaluation.predictions[index]] for index in shown],
        "correct": ["yes" if evaluation.correct[index] else "no" for index in shown],
        "id": [dataset.ids[index] for index in shown],
    }
    images = [ImageOps.fit(Image.fromarray(dataset.images[index]), (SPRITE, SPRITE)) for index in shown]
    tensorboard.add_projector(run.writer, embeddings[shown], np.stack([np.asarray(image) for image in images]), columns)
