"""The checks beyond the scores, each from what it needs: answers, the network, or other pictures."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from vitcifar.config import TrainConfig
from vitcifar.data.pictures import Pictures
from vitcifar.evaluation.attention import rollout
from vitcifar.evaluation.neighbours import Duplicate, Nearest, find_duplicates, joined, nearest_training, thumbnails
from vitcifar.evaluation.outliers import score_outliers
from vitcifar.evaluation.robustness import score_robustness
from vitcifar.evaluation.scores import Evaluation, Predictor
from vitcifar.evaluation.selective import apply_threshold
from vitcifar.evaluation.slices import score_slices
from vitcifar.examine.findings import Examination
from vitcifar.examine.outsiders import outlier_name, read_outliers

if TYPE_CHECKING:
    from vitcifar.training.network import Classifier

NUM_ATTENTION = 6  # right answers, and as many wrong ones
NUM_NEAREST = 8  # mistakes
# The cosine from which two pictures count as nearly the same: of small versions of them or, with the network, the mean
# of that and of its embeddings'. JPEG at quality 70, other brightness and doubled size stay above it; of the 560,000
# pairs between splits none of CIFAR-10's sample is above it, and of the digits, 8 pixels wide, one or two.
ALIKE = 0.99


def examine(
    evaluation: Evaluation,
    test: Pictures,
    logits: np.ndarray,
    config: TrainConfig,
    *,
    predictor: Predictor,
    trained_on: Mapping[str, Pictures],
    network: "Classifier | None" = None,
) -> Examination:
    """Look at what config.examine asks for; logits (N, K) are of the test pictures, `trained_on` the other splits.

    What needs more than answers (attention, embeddings) is left out without the network, and what needs the other
    splits without those. Raises DataError when the pictures of something else cannot be read.
    """
    full, threshold = config.examine == "full", None
    if evaluation.threshold:
        threshold = apply_threshold(
            evaluation.confidences, evaluation.correct, evaluation.threshold, config.target_precision
        )
    if config.examine == "none":
        return Examination(threshold=threshold)
    duplicates, nearest = None, None
    if trained_on:
        roles = {**trained_on, "test": test}
        duplicates, nearest = look_alike(evaluation, roles, network if full else None, config.batch_size)
    others, robustness = read_outliers(config, limit=len(test)), None
    if full and config.robustness_pictures:
        asked = test.subset(balanced(test.labels, config.robustness_pictures))
        robustness = score_robustness(predictor, asked, progress=partial(tqdm, desc="Corruptions", disable=None))
    return Examination(
        threshold=threshold,
        slices=score_slices(evaluation, test),
        duplicates=duplicates,
        attention=attention_maps(network, test, evaluation) if network else None,
        nearest=nearest,
        robustness=robustness,
        outliers=score_outliers(logits, predictor(others), evaluation.temperature) if others else (),
        outlier_source=outlier_name(config),
    )


def look_alike(
    evaluation: Evaluation, roles: Mapping[str, Pictures], network: "Classifier | None", batch_size: int
) -> tuple[tuple[Duplicate, ...], Nearest | None]:
    """Duplicates between the splits, and the training pictures nearest to the most confident mistakes."""
    small = {role: thumbnails(pictures.images) for role, pictures in roles.items()}
    if network is None:
        return find_duplicates(roles, small, threshold=ALIKE), None
    from vitcifar.training.predict import predict_embeddings

    seen = {}
    for role, pictures in roles.items():
        bar = partial(tqdm, desc=f"Embeddings, {role}", unit="batch", disable=None)
        seen[role] = predict_embeddings(network, pictures.images, batch_size, progress=bar)
    both = {role: joined(small[role], seen[role]) for role in roles}
    mistakes = confident(evaluation, right=False)[:NUM_NEAREST]
    nearest = nearest_training(mistakes, seen["test"], roles["train"], seen["train"]) if len(mistakes) else None
    return find_duplicates(roles, both, threshold=ALIKE), nearest


def attention_maps(network: "Classifier", pictures: Pictures, evaluation: Evaluation) -> dict[int, np.ndarray]:
    """Attention rollout of the most confident wrong answers, then of right ones of as many classes as there are."""
    from vitcifar.training.attention import attention_weights

    right = confident(evaluation, right=True)
    right = right[balanced(evaluation.labels[right], NUM_ATTENTION)]
    places = [*confident(evaluation, right=False)[:NUM_ATTENTION].tolist(), *right.tolist()]
    weights = attention_weights(network, [pictures.images[place] for place in places])
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
