"""Digits with planted duplicates, a network with random weights and its evaluation, each made once."""

import dataclasses
import functools

import numpy as np
import torch

from vitcifar.data.splits import Splits, read_splits
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.model.network import Classifier, build_network
from vitcifar.model.predict import predict_logits
from vitcifar.presets import resolve
from vitcifar.report.log import score

CONFIG = resolve(
    "digits", train_per_class=6, validation_per_class=4, test_per_class=4, corruption_images=3, target_precision=0.5
)


@functools.cache
def planted_splits() -> Splits:
    """Digits with three planted duplicates: two test images of the training split, and a darker one of validation."""
    clean = read_splits(CONFIG)
    images = np.array(clean.test.images)
    images[2] = clean.train.images[5]
    images[7] = clean.train.images[9]
    images[11] = np.clip(clean.validation.images[3] * 0.9, 0, 255).astype(np.uint8)
    return dataclasses.replace(clean, test=dataclasses.replace(clean.test, images=images))


@functools.cache
def random_network() -> Classifier:
    network = build_network(CONFIG, planted_splits().class_names)
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    return network.eval()


@functools.cache
def scored() -> tuple[Evaluation, np.ndarray]:
    """The evaluation of the network on the test split, with a threshold of 0.2, and its logits (N, K)."""
    logits = predict_logits(random_network(), planted_splits().test.images)
    return score(logits, planted_splits(), 1.0, 0.2), logits


def predicted() -> tuple[Evaluation, dict[str, np.ndarray]]:
    """The evaluation of the network on the test split, and its logits (N, K) of validation and test."""
    evaluation, logits = scored()
    return evaluation, {
        "validation": predict_logits(random_network(), planted_splits().validation.images),
        "test": logits,
    }
