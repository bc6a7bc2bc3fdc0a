"""The analysis of an evaluation beyond its metrics: which checks run, and their results.

Shapes: N images, Q queries, D features, embeddings (N, D). Similarity is the cosine, 0 for a row of zeros."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sklearn import config_context
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from tqdm import tqdm

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.calibration import Threshold, apply_threshold
from vitcifar.evaluation.corruptions import Robustness, evaluate_robustness
from vitcifar.evaluation.metrics import Evaluation, Predictor
from vitcifar.evaluation.ood import OODScore, evaluate_ood, ood_name, read_ood_images
from vitcifar.evaluation.slices import Slice, evaluate_slices

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicate:
    """An image of one split that is also in another; `same_pixels` = identical, else a near-duplicate."""

    split: str
    id: str
    other_split: str
    other_id: str
    similarity: float
    same_pixels: bool
    same_label: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NearestImages:
    """The k training images most similar to each query, best first."""

    queries: np.ndarray  # (Q,) indices in the dataset of the queries
    train: ImageDataset
    indices: np.ndarray  # (Q, k) indices in `train`
    cosines: np.ndarray  # (Q, k)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """Results of the checks; None or empty = not run. Attention maps are by the index of the test image."""

    threshold: Threshold | None = None
    slices: tuple[Slice, ...] = ()
    duplicates: tuple[Duplicate, ...] | None = None
    attention: Mapping[int, np.ndarray] | None = None
    nearest: NearestImages | None = None
    robustness: Robustness | None = None
    ood: tuple[OODScore, ...] = ()
    ood_source: str = "none"

    def scalars(self) -> dict[str, float]:
        """Every metric by its flat name."""
        flat: dict[str, float] = {}
        if self.threshold:
            flat["coverage"] = self.threshold.coverage
            flat |= {"precision": self.threshold.precision} if self.threshold.num_answered else {}
        flat |= {f"slice/{slice.property}/{slice.name}": slice.accuracy for slice in self.slices}
        if self.duplicates is not None:
            flat["duplicates"] = float(len(self.duplicates))
            flat["duplicates_same_pixels"] = float(sum(pair.same_pixels for pair in self.duplicates))
        if self.robustness:
            flat |= self.robustness.scalars()
        return flat | {f"ood/{score.name}_auroc": score.auroc for score in self.ood}

    def to_dict(self, dataset: ImageDataset) -> dict[str, Any]:
        """The results as JSON types, images by their ids."""
        nearest = None
        if found := self.nearest:
            nearest = {
                dataset.ids[query]: {found.train.ids[index]: float(cosine) for index, cosine in zip(*row, strict=True)}
                for query, *row in zip(found.queries, found.indices, found.cosines, strict=True)
            }
        maps = {dataset.ids[index]: patches.tolist() for index, patches in (self.attention or {}).items()}
        return {
            "threshold": self.threshold and dataclasses.asdict(self.threshold),
            "slices": [dataclasses.asdict(slice) for slice in self.slices],
            "duplicates": self.duplicates and [dataclasses.asdict(pair) for pair in self.duplicates],
            "attention": maps or None,
            "nearest_training": nearest,
            "robustness": self.robustness and self.robustness.to_dict(),
            "ood": [score.to_dict() for score in self.ood],
            "ood_source": self.ood_source,
        }


NUM_ATTENTION = 6  # correct predictions, and as many errors
NUM_NEAREST = 8  # errors
# The cosine of a near-duplicate: of thumbnails or, with the network, the mean of that and of its embeddings' cosine.
# JPEG at quality 70, another brightness and twice the size stay above it. Of the 560,000 pairs across splits of
# CIFAR-10's sample none reaches it, of the digits (8 x 8 pixels) one or two.
DUPLICATE_COSINE = 0.99
SEARCH_MEMORY = 64  # MiB of similarities at a time


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
    """Run the checks that config.analysis selects; logits (N, K) of the test images, `trained_on` = the other splits.

    Attention maps and embeddings need the network, duplicates and nearest images need the other splits.
    Raises ConfigError or DataError if the OOD images cannot be read.
    """
    full, threshold = config.analysis == "full", None
    if evaluation.threshold != 0:
        threshold = apply_threshold(
            evaluation.confidences, evaluation.correct, evaluation.threshold, config.target_precision
        )
    if config.analysis == "none":
        return Analysis(threshold=threshold)
    duplicates, nearest = None, None
    if trained_on:
        datasets = {**trained_on, "test": test}
        duplicates, nearest = similar_images(evaluation, datasets, network if full else None, config.batch_size)
    ood_images, robustness = read_ood_images(config, limit=len(test)), None
    if full and config.corruption_images:
        subset = test.subset(balanced_indices(test.labels, config.corruption_images))
        robustness = evaluate_robustness(predictor, subset, progress=partial(tqdm, desc="Corruptions", disable=None))
    return Analysis(
        threshold=threshold,
        slices=evaluate_slices(evaluation, test),
        duplicates=duplicates,
        attention=attention_maps(network, test, evaluation) if network else None,
        nearest=nearest,
        robustness=robustness,
        ood=evaluate_ood(logits, predictor(ood_images), evaluation.temperature) if ood_images else (),
        ood_source=ood_name(config),
    )


def similar_images(
    evaluation: Evaluation, datasets: Mapping[str, ImageDataset], network: "Classifier | None", batch_size: int
) -> tuple[tuple[Duplicate, ...], NearestImages | None]:
    """Duplicates across splits and, with the network, the training images nearest to the most confident errors."""
    embeddings = {split: thumbnails(dataset.images) for split, dataset in datasets.items()}
    nearest = None
    if network is not None:
        from vitcifar.model.predict import predict_embeddings

        learned = {}
        for split, dataset in datasets.items():
            bar = partial(tqdm, desc=f"Embeddings, {split}", unit="batch", disable=None)
            learned[split] = predict_embeddings(network, dataset.images, batch_size, progress=bar)
        embeddings = {split: concat_embeddings(embeddings[split], learned[split]) for split in datasets}
        errors = most_confident(evaluation, correct=False)[:NUM_NEAREST]
        if len(errors):
            nearest = nearest_training(errors, learned["test"], datasets["train"], learned["train"])
    return find_duplicates(datasets, embeddings), nearest


def attention_maps(network: "Classifier", dataset: ImageDataset, evaluation: Evaluation) -> dict[int, np.ndarray]:
    """Attention rollout, by index, of the most confident errors, then of correct predictions of different classes."""
    from vitcifar.model.predict import attention_weights

    correct = most_confident(evaluation, correct=True)
    correct = correct[balanced_indices(evaluation.labels[correct], NUM_ATTENTION)]
    indices = [*most_confident(evaluation, correct=False)[:NUM_ATTENTION].tolist(), *correct.tolist()]
    weights = attention_weights(network, [dataset.images[index] for index in indices])
    return {index: rollout(layers) for index, layers in zip(indices, weights, strict=True)}


def most_confident(evaluation: Evaluation, *, correct: bool) -> np.ndarray:
    """Indices of the correct predictions or of the errors, the most confident first."""
    indices = np.flatnonzero(evaluation.correct == correct)
    return indices[np.argsort(-evaluation.confidences[indices], kind="stable")]


def balanced_indices(labels: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of `count` labels, with the classes as equally frequent as possible."""
    order = np.argsort(labels, kind="stable")
    num_before = np.empty(len(labels), np.int64)  # earlier labels of the same class
    num_before[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return np.sort(np.argsort(num_before, kind="stable")[:count])


def rollout(attention: np.ndarray) -> np.ndarray:
    """Attention rollout of one image (Abnar & Zuidema 2020): (L, h, T, T) -> square of patches, sum 1.

    Heads are averaged, the residual connection is half of every layer, and the layers are multiplied.
    """
    num_tokens = attention.shape[-1]
    side = round((num_tokens - 1) ** 0.5)
    assert attention.ndim == 4 and attention.shape[-2] == num_tokens == side**2 + 1, attention.shape
    flow = np.eye(num_tokens)
    for layer in np.asarray(attention, np.float64).mean(axis=1):  # (T, T)
        layer = (layer + np.eye(num_tokens)) / 2
        flow = (layer / layer.sum(axis=1, keepdims=True)) @ flow
    patches = flow[0, 1:]
    return np.asarray((patches / patches.sum()).reshape(side, side))


def nearest_training(
    queries: np.ndarray, embeddings: np.ndarray, train: ImageDataset, train_embeddings: np.ndarray, k: int = 5
) -> NearestImages:
    """The k training images nearest to the images with the indices `queries`; embeddings (N, D) and (N_train, D)."""
    with config_context(working_memory=SEARCH_MEMORY):
        search = NearestNeighbors(metric="cosine").fit(train_embeddings)
        distances, indices = search.kneighbors(embeddings[queries], min(k, len(train)))
    return NearestImages(queries=queries, train=train, indices=indices, cosines=1 - distances)


def find_duplicates(
    splits: Mapping[str, ImageDataset], embeddings: Mapping[str, np.ndarray], *, threshold: float = DUPLICATE_COSINE
) -> tuple[Duplicate, ...]:
    """Images that are in two splits: identical pixels, or embeddings of at least the cosine `threshold`.

    The embeddings of a network put all images of a class close together: concatenate them with thumbnails. Identical
    pairs come first, then the most similar.
    """
    hashes = {name: [pixel_hash(image) for image in dataset.images] for name, dataset in splits.items()}
    duplicates = []
    for one, other in combinations(splits, 2):
        identical = _same_hashes(hashes[one], hashes[other])
        similarities = _similar(embeddings[one], embeddings[other], threshold) | dict.fromkeys(identical, 1.0)
        duplicates += [
            Duplicate(
                split=one,
                id=splits[one].ids[row],
                other_split=other,
                other_id=splits[other].ids[column],
                similarity=similarity,
                same_pixels=(row, column) in identical,
                same_label=bool(splits[one].labels[row] == splits[other].labels[column]),
            )
            for (row, column), similarity in similarities.items()
        ]
    return tuple(sorted(duplicates, key=lambda d: (not d.same_pixels, -d.similarity, d.split, d.id)))


def _similar(embeddings: np.ndarray, others: np.ndarray, threshold: float) -> dict[tuple[int, int], float]:
    """(row, column) -> cosine of every pair that reaches the threshold."""
    with config_context(working_memory=SEARCH_MEMORY):
        search = NearestNeighbors(metric="cosine").fit(others)
        near = search.radius_neighbors_graph(embeddings, 1 - threshold, mode="distance").tocoo()
    pairs = zip(near.row.tolist(), near.col.tolist(), strict=True)
    return dict(zip(pairs, (1 - near.data).tolist(), strict=True))


def _same_hashes(hashes: Sequence[str], others: Sequence[str]) -> set[tuple[int, int]]:
    columns: dict[str, list[int]] = {}
    for column, digest in enumerate(others):
        columns.setdefault(digest, []).append(column)
    return {(row, column) for row, digest in enumerate(hashes) for column in columns.get(digest, ())}


def pixel_hash(image: np.ndarray) -> str:
    """sha256 over shape and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def thumbnails(images: np.ndarray | Sequence[np.ndarray], side: int = 16) -> np.ndarray:
    """Embeddings without a network: each image resized to side x side, minus its mean colour (N, 3 side side)."""
    small = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in images]
    pixels = np.stack(small).astype(np.float32)  # (N, side, side, 3)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    return pixels.reshape(len(pixels), -1)


def concat_embeddings(*embeddings: np.ndarray) -> np.ndarray:
    """Concatenate embeddings (N, D1), (N, D2), ... so that the cosine is the mean of theirs."""
    return np.concatenate([normalize(rows) for rows in embeddings], axis=1)
