"""Which unlabelled images to label next: those that a model is uncertain about and that differ from each other.

Shapes: N images, K classes, D the width of an embedding.
"""

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

CANDIDATES = 10  # times the number to choose: the most uncertain images, which are clustered
MIN_WEIGHT = 1e-6  # of an image that the model is certain about


def uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """1 - the margin between the two most likely classes (N,), of probabilities (N, K): 0 = certain, 1 = a tie."""
    ranked = np.sort(np.asarray(probabilities, np.float64), axis=1)
    return np.asarray(1 - (ranked[:, -1] - ranked[:, -2]))


def select_images(probabilities: np.ndarray, embeddings: np.ndarray, num: int, *, seed: int = 0) -> np.ndarray:
    """Indices of `num` images (all, if there are fewer) to label, by weighted clustering (Zhdanov 2019, "Diverse
    mini-batch active learning").

    The embeddings (N, D) of the 10 `num` most uncertain images, by probabilities (N, K), are clustered by k-means with
    their uncertainty as weights. Of each of the `num` clusters, the image next to its centre is chosen; first that of
    the cluster with the largest weight, which stands for the most uncertainty. Without embeddings (D = 0), the
    probabilities are clustered.
    """
    weights = np.maximum(uncertainty(probabilities), MIN_WEIGHT)
    order = np.argsort(-weights, kind="stable")
    if num >= len(order):
        return order
    candidates = order[: CANDIDATES * num]
    points = np.asarray(embeddings if embeddings.shape[1] else probabilities, np.float64)[candidates]  # (C, D)
    weights = weights[candidates]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than clusters: some are empty
        found = KMeans(num, n_init=1, random_state=seed).fit(points, sample_weight=weights)
    distances = ((points - found.cluster_centers_[found.labels_]) ** 2).sum(axis=1)  # (C,)
    totals = np.bincount(found.labels_, weights, minlength=num)
    chosen: list[int] = []
    for cluster in np.argsort(-totals, kind="stable"):
        members = np.flatnonzero(found.labels_ == cluster)
        chosen += [int(candidates[members[distances[members].argmin()]])] if len(members) else []
    left = set(chosen)
    return np.array([*chosen, *(int(index) for index in order if index not in left)][:num], np.int64)
