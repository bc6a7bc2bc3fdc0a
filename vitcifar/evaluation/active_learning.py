"""Which unlabelled images to label next: those that a model is uncertain about and that differ from each other.

Shapes: N images, K classes, D the width of an embedding.
"""

import numpy as np


def select_images(probabilities: np.ndarray, embeddings: np.ndarray, num: int, *, seed: int = 0) -> np.ndarray:
    """Indices of `num` images (all, if there are fewer) to label, in the order of their choice, as BADGE chooses them
    (Ash et al. 2020, "Deep batch active learning by diverse, uncertain gradient lower bounds").

    An image is represented by the gradient of its loss in the head's weights and biases, as if the prediction were its
    label: (p - onehot) outer (embedding, 1), which is long for an uncertain image and has the direction of what its
    label would teach. k-means++ (Arthur & Vassilvitskii 2007) spreads the choice: the longest first, then each with a
    probability proportional to its squared distance from the nearest one chosen. The first images of a choice are
    what a smaller `num` gives. Probabilities are (N, K), embeddings (N, D); D may be 0.
    """
    errors = np.array(probabilities, np.float64)  # (N, K)
    errors[np.arange(len(errors)), errors.argmax(axis=1)] -= 1
    features = np.concatenate([np.asarray(embeddings, np.float64), np.ones((len(errors), 1))], axis=1)  # (N, D + 1)
    norms = (errors**2).sum(axis=1) * (features**2).sum(axis=1)  # of the gradients, squared (N,)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    distances = norms
    while len(chosen) < min(num, len(errors)):
        total = distances.sum()
        if not chosen:
            index = int(norms.argmax())
        elif total > 0:
            index = int(rng.choice(len(errors), p=distances / total))
        else:  # the rest teaches nothing new
            index = next(one for one in range(len(errors)) if one not in chosen)
        # The product of two outer products is the product of their factors' products: no gradient is ever formed.
        products = (errors @ errors[index]) * (features @ features[index])
        away = np.maximum(norms + norms[index] - 2 * products, 0)
        distances = np.minimum(distances, away) if chosen else away
        chosen.append(index)
        distances[chosen] = 0
    return np.array(chosen, np.int64)
