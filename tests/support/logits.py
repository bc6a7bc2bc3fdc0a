"""Logits with known properties."""

import numpy as np


def some_logits(num_images=300, num_classes=4, signal=1.5, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, num_images)
    logits = random.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += signal
    return logits, labels


def calibrated_logits(num_images, seed=0, num_classes=5):
    """Labels drawn from the softmax of the logits, so that the right temperature is exactly 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_images, num_classes)) * 2
    noise = random.gumbel(size=logits.shape)
    return logits, (logits + noise).argmax(axis=1)
