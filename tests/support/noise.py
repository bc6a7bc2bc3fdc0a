"""Small datasets of random pixels."""

import numpy as np

from vitcifar.data.dataset import ImageDataset


def some_images(images, labels=None, prefix="p"):
    labels = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels, np.int64)
    ids = tuple(f"{prefix}{index}" for index in range(len(images)))
    return ImageDataset(images=images, labels=labels, class_names=("cat", "dog"), ids=ids)


def noise(num, seed=0, side=12):
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3)).astype(np.uint8)
