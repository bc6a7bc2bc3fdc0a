"""Labels that are likely wrong: confident learning on predictions for images that the model did not learn from.

The method is that of Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels"
(JAIR 70), of which the library cleanlab is the authors' own code; a test compares the two. N images, D features, K
classes."""

import numpy as np

from vitcifar.errors import DataError
from vitcifar.training.head_solver import MAX_ITERATIONS, NUM_FOLDS, STRENGTHS


def cross_validated_probabilities(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Probabilities (N, K) of every image by a head that was fitted to the other folds' features (N, D).

    The head is a multinomial logistic regression. Its L2 is weakened from decade to decade as long as that lowers the
    log loss on the images left out. Raises DataError for a class of one image.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    num_folds = min(NUM_FOLDS, int(np.bincount(labels).min()))
    if num_folds < 2:
        raise DataError("They are found by cross-validation, which needs at least 2 images of each class: add images.")
    samples = features.astype(np.float64) / max(float(features.std()), 1e-12)
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    best, lowest = np.zeros((0, 0)), np.inf
    for strength in STRENGTHS[::2]:
        model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
        probabilities = cross_val_predict(model, samples, labels, cv=folds, method="predict_proba")
        loss = -float(np.log(np.maximum(own_probability(labels, probabilities), 1e-12)).mean())
        if loss >= lowest:
            break
        best, lowest = probabilities, loss
    return best


def own_probability(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The probability (N,) of each image's own label, its self-confidence; probabilities (N, K)."""
    return np.asarray(probabilities[np.arange(len(labels)), labels])


def find_label_errors(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Indices of labels that are likely wrong, the lowest self-confidence first; probabilities (N, K) out of sample.

    How many labels of a class are wrong is estimated by the confident joint: an image counts for the class, among those
    whose mean self-confidence it reaches, that is most probable. As many with the lowest self-confidence are taken
    ("prune by class"), less those for which their own label is the most probable.
    """
    num_classes, own = probabilities.shape[1], own_probability(labels, probabilities)
    counts = np.bincount(labels, minlength=num_classes)
    means = np.bincount(labels, own, num_classes) / np.maximum(counts, 1)
    reached = probabilities >= np.where(counts > 0, means, np.inf) - 1e-6
    confident = reached.any(axis=1)
    likely = np.where(reached, probabilities, -1.0).argmax(axis=1)
    joint = np.zeros((num_classes, num_classes))
    np.add.at(joint, (labels[confident], likely[confident]), 1)
    right = np.maximum(joint.diagonal(), 1) / np.maximum(joint.sum(axis=1), 1)  # share of each class
    num_wrong = np.minimum(np.round(counts * (1 - right)), counts - 1).astype(int)
    found: list[int] = []
    for label in np.flatnonzero(num_wrong > 0):
        members = np.flatnonzero(labels == label)
        found += members[np.argsort(own[members], kind="stable")[: num_wrong[label]]].tolist()
    indices = np.array(found, dtype=np.int64)
    indices = indices[probabilities[indices].max(axis=1) > own[indices]] if len(indices) else indices
    return indices[np.argsort(own[indices], kind="stable")]
