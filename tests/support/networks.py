"""A small network with a head that is not zero, and random images."""

import numpy as np
import torch

from vitcifar.model.network import Classifier, build_network
from vitcifar.presets import resolve

CLASSES = ("ant", "bee", "cat")


def tiny(**settings) -> Classifier:
    """vit_tiny; torchvision starts heads at zero, and two zero outputs would always be equal."""
    network = build_network(resolve("digits", **settings), CLASSES)
    torch.manual_seed(1)
    torch.nn.init.normal_(network.head.weight)
    return network.eval()


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
