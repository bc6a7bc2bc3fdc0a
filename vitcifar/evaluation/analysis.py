"""The checks beyond the metrics, each from what it needs, and what they found."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.calibration import Threshold, apply_threshold
from vitcifar.evaluation.metrics import Evaluation, Predictor
from vitcifar.evaluation.neighbors import (
    Duplicate,
    NearestImages,
    concat_embeddings,
    find_duplicates,
    nearest_training,
    thumbnails,
)
from vitcifar.evaluation.ood import OODScore, evaluate_ood, ood_name, read_ood_images
from vitcifar.evaluation.robustness import Robustness, evaluate_robustness
from vitcifar.evaluation.slices import Slice, evaluate_slices

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """What was found; None = not looked at. Maps of attention are by the place of the image in the test split."""

    threshold: Threshold | None = None
    slices: tuple[Slice, ...] = ()
    duplicates: tuple[Duplicate, ...] | None = None
    attention: Mapping[int, np.ndarray] | None = None
    nearest: NearestImages | None = None
    robustness: Robustness | None = None
    ood: tuple[OODScore, ...] = ()
    ood_source: str = "none"

    def scalars(self) -> dict[str, float]:
        """Every number by its flat name."""
        flat: dict[str, float] = {}
        if self.threshold:
            flat |= {"coverage": self.threshold.coverage, "precision": self.threshold.precision}
        flat |= {f"slice/{slice.property}/{slice.name}": slice.accuracy for slice in self.slices}
        if self.duplicates is not None:
            flat["duplicates"] = float(len(self.duplicates))
            flat["duplicates_same_pixels"] = float(sum(pair.same_pixels for pair in self.duplicates))
        if self.robustness:
            flat |= self.robustness.scalars()
        return flat | {f"ood/{score.name}_auroc": score.auroc for score in self.ood}

    def to_dict(self, dataset: ImageDataset) -> dict[str, Any]:
        """All of it as JSON's own types, images by their ids."""
        nearest = None
        if self.nearest:
            ids = self.nearest.train.ids
            rows = zip(self.nearest.places, self.nearest.indices, self.nearest.cosines, strict=True)
            nearest = {
                dataset.ids[place]: {ids[index]: float(cosine) for index, cosine in zip(row, cosines, strict=True)}
                for place, row, cosines in rows
            }
        maps = {dataset.ids[place]: patches.tolist() for place, patches in (self.attention or {}).items()}
        bulky = ("inside", "outside")
        return {
            "threshold": self.threshold and dataclasses.asdict(self.threshold),
            "slices": [dataclasses.asdict(slice) for slice in self.slices],
            "duplicates": self.duplicates and [dataclasses.asdict(pair) for pair in self.duplicates],
            "attention": maps or None,
            "nearest_training": nearest,
            "robustness": self.robustness and self.robustness.to_dict(),
            "ood": [
                {name: value for name, value in dataclasses.asdict(score).items() if name not in bulky}
                for score in self.ood
            ],
            "ood_source": self.ood_source,
        }


NUM_ATTENTION = 6  # right answers, and as many wrong ones
NUM_NEAREST = 8  # mistakes
# The cosine from which two images count as nearly the same: of small versions of them or, with the network, the mean
# of that and of its embeddings'. JPEG at quality 70, other brightness and doubled size stay above it; of the 560,000
# pairs between splits none of CIFAR-10's sample is above it, and of the digits, 8 pixels wide, one or two.
ALIKE = 0.99


def analyze(
    evaluation: Evaluation,
    test: ImageDataset,
    logits: np.ndarray,
    config: TrainConfig,
    *,
    predictor: Predictor,
    trained_on: Mapping[str, ImageDataset],
    network: "Classifier | None" = None,
) -> Analysis:
    """Look at what config.analysis asks for; logits (N, K) are of the test images, `trained_on` the other splits.

    What needs more than answers (attention, embeddings) is left out without the network, and what needs the other
    splits without those. Raises DataError when the images of something else cannot be read.
    """
    full, threshold = config.analysis == "full", None
    if evaluation.threshold:
        threshold = apply_threshold(
            evaluation.confidences, evaluation.correct, evaluation.threshold, config.target_precision
        )
    if config.analysis == "none":
        return Analysis(threshold=threshold)
    duplicates, nearest = None, None
    if trained_on:
        datasets = {**trained_on, "test": test}
        duplicates, nearest = look_alike(evaluation, datasets, network if full else None, config.batch_size)
    others, robustness = read_ood_images(config, limit=len(test)), None
    if full and config.corruption_images:
        asked = test.subset(balanced(test.labels, config.corruption_images))
        robustness = evaluate_robustness(predictor, asked, progress=partial(tqdm, desc="Corruptions", disable=None))
    return Analysis(
        threshold=threshold,
        slices=evaluate_slices(evaluation, test),
        duplicates=duplicates,
        attention=attention_maps(network, test, evaluation) if network else None,
        nearest=nearest,
        robustness=robustness,
        ood=evaluate_ood(logits, predictor(others), evaluation.temperature) if others else (),
        ood_source=ood_name(config),
    )


def look_alike(
    evaluation: Evaluation, datasets: Mapping[str, ImageDataset], network: "Classifier | None", batch_size: int
) -> tuple[tuple[Duplicate, ...], NearestImages | None]:
    """Duplicates between the splits, and the training images nearest to the most confident mistakes."""
    small = {split: thumbnails(dataset.images) for split, dataset in datasets.items()}
    if network is None:
        return find_duplicates(datasets, small, threshold=ALIKE), None
    from vitcifar.model.predict import predict_embeddings

    seen = {}
    for split, dataset in datasets.items():
        bar = partial(tqdm, desc=f"Embeddings, {split}", unit="batch", disable=None)
        seen[split] = predict_embeddings(network, dataset.images, batch_size, progress=bar)
    both = {split: concat_embeddings(small[split], seen[split]) for split in datasets}
    mistakes = confident(evaluation, right=False)[:NUM_NEAREST]
    nearest = nearest_training(mistakes, seen["test"], datasets["train"], seen["train"]) if len(mistakes) else None
    return find_duplicates(datasets, both, threshold=ALIKE), nearest


def attention_maps(network: "Classifier", dataset: ImageDataset, evaluation: Evaluation) -> dict[int, np.ndarray]:
    """Attention rollout of the most confident wrong answers, then of right ones of as many classes as there are."""
    from vitcifar.model.predict import attention_weights

    right = confident(evaluation, right=True)
    right = right[balanced(evaluation.labels[right], NUM_ATTENTION)]
    places = [*confident(evaluation, right=False)[:NUM_ATTENTION].tolist(), *right.tolist()]
    weights = attention_weights(network, [dataset.images[place] for place in places])
    return {place: rollout(layers) for place, layers in zip(places, weights, strict=True)}


def confident(evaluation: Evaluation, *, right: bool) -> np.ndarray:
    """Places of the right or of the wrong answers, the most confident first."""
    places = np.flatnonzero(evaluation.correct == right)
    return places[np.argsort(-evaluation.confidences[places], kind="stable")]


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """The first places of each class in turn, `count` of them, in their order."""
    order = np.argsort(labels, kind="stable")
    turn = np.empty(len(labels), np.int64)  # how many of its class come before each
    turn[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return np.sort(np.argsort(turn, kind="stable")[:count])


def rollout(attention: np.ndarray, grid: tuple[int, int] | None = None) -> np.ndarray:
    """Attention rollout of one image: (rows, columns) of patches, sums to 1 (Abnar & Zuidema 2020).

    Heads are averaged, the residual connection is half of every layer, and layers are multiplied through.
    `grid` is needed when the patches are not a square.
    """
    num_tokens = attention.shape[-1]
    assert attention.ndim == 4 and attention.shape[-2] == num_tokens, attention.shape
    side = round((num_tokens - 1) ** 0.5)
    grid = grid or (side, side)
    assert grid[0] * grid[1] == num_tokens - 1, (grid, num_tokens)
    flow = np.eye(num_tokens)
    for layer in np.asarray(attention, np.float64).mean(axis=1):  # (T, T)
        layer = (layer + np.eye(num_tokens)) / 2
        flow = (layer / layer.sum(axis=1, keepdims=True)) @ flow
    patches = flow[0, 1:]
    return (patches / patches.sum()).reshape(grid)
