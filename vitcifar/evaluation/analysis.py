"""The analysis of an evaluation beyond its metrics: which checks run, and their results.

Shapes: N images, Q queries, D features, embeddings (N, D). Similarity is the cosine, 0 for a row of zeros."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn import config_context
from sklearn.neighbors import NearestNeighbors

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.audit import Audit
from vitcifar.evaluation.calibration import Threshold, apply_threshold
from vitcifar.evaluation.corruptions import Robustness, evaluate_robustness
from vitcifar.evaluation.duplicates import Duplicates, concat_embeddings, find_duplicates, thumbnails
from vitcifar.evaluation.metrics import Evaluation, Predictor
from vitcifar.evaluation.ood import OODScore, evaluate_ood, ood_name, read_ood_images
from vitcifar.evaluation.slices import Slice, evaluate_slices
from vitcifar.progress import bar

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier
    from vitcifar.training.feature_cache import Embedder


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NearestImages:
    """The k training images most similar to each query, best first; cosines of embeddings less their training mean."""

    queries: np.ndarray  # (Q,) indices in the dataset of the queries
    train: ImageDataset
    indices: np.ndarray  # (Q, k) indices in `train`
    cosines: np.ndarray  # (Q, k)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """Results of the checks; None or empty = not run. Attention maps are by the index of the test image."""

    threshold: Threshold | None = None
    slices: tuple[Slice, ...] = ()
    duplicates: Duplicates | None = None
    attention: Mapping[int, np.ndarray] | None = None
    nearest: NearestImages | None = None
    robustness: Robustness | None = None
    ood: tuple[OODScore, ...] = ()
    ood_source: str = "none"
    audit: Audit | None = None

    def scalars(self) -> dict[str, float]:
        """The metrics by which runs are compared; `to_dict` has all."""
        flat: dict[str, float] = {}
        if self.threshold:
            flat["coverage"] = self.threshold.coverage
            flat |= {"precision_at_threshold": self.threshold.precision} if self.threshold.num_answered else {}
        if self.robustness:
            flat["corruption_accuracy"] = self.robustness.mean_accuracy
        if self.ood:
            flat["ood_auroc"] = self.ood[0].auroc  # of the best score
        return flat

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
            "duplicates": self.duplicates and dataclasses.asdict(self.duplicates),
            "attention": maps or None,
            "nearest_training": nearest,
            "robustness": self.robustness and self.robustness.to_dict(),
            "ood": [score.to_dict() for score in self.ood],
            "ood_source": self.ood_source,
            "audit": self.audit and self.audit.to_dict(),
        }


NUM_ATTENTION = 6  # correct predictions, and as many errors
NUM_NEAREST = 8  # errors
SEARCH_MEMORY = 64  # MiB of similarities at a time


def analyze(
    evaluation: Evaluation,
    test: ImageDataset,
    logits: np.ndarray,
    config: TrainConfig,
    *,
    predictor: Predictor,
    trained_on: Mapping[str, ImageDataset],
    embedder: "Embedder | None" = None,
) -> Analysis:
    """Run the checks that config.analysis selects; logits (N, K) of the test images, `trained_on` = the other splits.

    Attention maps and embeddings need the network of the embedder, duplicates and nearest images the other splits.
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
        duplicates, nearest = similar_images(evaluation, datasets, embedder if full else None)
    ood_images, robustness = read_ood_images(config, limit=len(test)), None
    if full and config.corruption_images:
        subset = test.subset(balanced_indices(test.labels, config.corruption_images))
        progress = partial(bar, title="Corruptions", unit="kinds")
        robustness = evaluate_robustness(predictor, subset, progress=progress)
    return Analysis(
        threshold=threshold,
        slices=evaluate_slices(evaluation, test),
        duplicates=duplicates,
        attention=attention_maps(embedder.network, test, evaluation) if embedder else None,
        nearest=nearest,
        robustness=robustness,
        ood=evaluate_ood(logits, predictor(ood_images), evaluation.temperature) if ood_images else (),
        ood_source=ood_name(config),
    )


def similar_images(
    evaluation: Evaluation, datasets: Mapping[str, ImageDataset], embedder: "Embedder | None"
) -> tuple[Duplicates, NearestImages | None]:
    """Duplicates across splits and, with an embedder, the training images nearest to the most confident errors."""
    embeddings = {split: thumbnails(dataset.images) for split, dataset in datasets.items()}
    nearest = None
    if embedder is not None:
        learned = {}
        for split, dataset in datasets.items():
            progress = partial(bar, title=f"Embeddings of {split}", unit="batches")
            learned[split] = embedder.embed(dataset, progress=progress)
        embeddings = {split: concat_embeddings(embeddings[split], learned[split]) for split in datasets}
        errors = most_confident(evaluation, correct=False)[:NUM_NEAREST]
        if len(errors):
            mean = learned["train"].mean(axis=0)  # common to all, so that every cosine with it is close to 1
            nearest = nearest_training(errors, learned["test"] - mean, datasets["train"], learned["train"] - mean)
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
