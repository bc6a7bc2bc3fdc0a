"""What a stage trains on: images, or cached features that its frozen layers compute once for all epochs."""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.model.network import Classifier, Images, frozen_depth
from vitcifar.training.batches import AugmentedImages, Loader, Request
from vitcifar.training.distributed import autocast, num_processes, rank, sum_over_processes

IMAGES_PER_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Loaders of training and validation batches, and the two steps from a batch to logits (B, K)."""

    train: Loader
    validation: Loader
    preprocess: Callable[[Images], Tensor]  # -> pixels (B, 3, S, S), or the features as loaded
    classify: Callable[[Tensor], Tensor]


def prepare_inputs(
    network: Classifier,
    train: ImageDataset,
    validation: ImageDataset,
    config: TrainConfig,
    train_layers: str,
    precision: str,
    notify: Callable[[str], object],
) -> Inputs:
    """Decide whether frozen features are cached, report the decision, and compute them."""
    device = network.head.weight.device
    train_images = Loader(AugmentedImages(train, config.augmentation, config.seed), config.num_workers, device)
    validation_images = Loader(AugmentedImages(validation, "none", config.seed), 0, device)
    depth = frozen_depth(network, train_layers)
    num_views, message = plan_cache(network, config, depth, (len(train), len(validation)))
    if message:
        notify(message)
    if depth is None or num_views == 0:
        return Inputs(train_images, validation_images, network.preprocess, compiled(network.from_pixels, config))
    cache = partial(compute_features, network, depth=depth, precision=precision)
    return Inputs(
        Loader(cache(train_images, len(train), num_views=num_views), 0, device),
        Loader(cache(validation_images, len(validation), num_views=1), 0, device),
        nn.Identity(),
        compiled(partial(network.forward_head, depth=depth), config),
    )


def plan_cache(network: Classifier, config: TrainConfig, depth: int | None, sizes: tuple[int, int]) -> tuple[int, str]:
    """Number of views to cache of each training image (0 = no cache), and a message with the reason.

    `sizes` are the numbers of training and validation images.
    """
    if depth is None:
        return 0, ""
    if config.num_views == 0:
        return 0, "num_views is 0: frozen features are recomputed in every epoch."
    if config.mixup or config.cutmix:
        return 0, "mixup and cutmix blend pixels: frozen features are recomputed in every epoch."
    num_views = 1 if config.augmentation == "none" else config.num_views
    num_values = (num_views * sizes[0] + sizes[1]) * int(np.prod(feature_shape(network, depth)))
    gigabytes = num_values * 4 / 1e9
    if gigabytes > config.cache_memory:
        return 0, (
            f"The feature cache needs {gigabytes:.2f} GB, more than cache_memory ({config.cache_memory:g} GB): "
            "features are recomputed in every epoch."
        )
    views = f"{num_views} view{'s' * (num_views > 1)} of {sizes[0]:,} training and {sizes[1]:,} validation images"
    return num_views, f"Frozen features are computed once, for {views}: the feature cache takes {gigabytes:.3f} GB."


def feature_shape(network: Classifier, depth: int) -> tuple[int, ...]:
    """Shape of `network.forward_features` at this depth for one image."""
    hidden_size = network.backbone.hidden_dim
    return (hidden_size,) if depth > len(network.blocks) else (network.backbone.seq_length, hidden_size)


class CachedFeatures(Dataset[Images]):
    """Features of every augmented view of every image; epoch e takes view e, and starts over after the last view."""

    def __init__(self, views: Tensor) -> None:
        self.views = views  # (V, N, D), or (V, N, T, D) below trainable blocks

    def __getitem__(self, request: Request) -> Tensor:
        epoch, indices = request
        return self.views[(epoch - 1) % len(self.views), torch.from_numpy(indices)]


@torch.no_grad()
def compute_features(
    network: Classifier, loader: Loader, num_images: int, *, depth: int, num_views: int, precision: str
) -> CachedFeatures:
    """Run the frozen layers on every view of every image; the work is shared by all processes."""
    network.eval()
    views = torch.zeros(num_views, num_images, *feature_shape(network, depth))
    own = np.arange(num_images)[rank() :: num_processes()]
    chunks = [own[start : start + IMAGES_PER_BATCH] for start in range(0, len(own), IMAGES_PER_BATCH)]
    requests = [(view + 1, chunk) for view in range(num_views) for chunk in chunks]
    bar = tqdm(requests, desc="frozen features", disable=None)
    for (epoch, chunk), images in zip(bar, loader(requests), strict=True):
        with autocast(loader.device, precision):
            features = network.forward_features(network.preprocess(images), depth)
        views[epoch - 1, torch.from_numpy(chunk)] = features.float().cpu()
    return CachedFeatures(sum_over_processes(views.to(loader.device)).cpu() if num_processes() > 1 else views)


def compiled(function: Callable[[Tensor], Tensor], config: TrainConfig) -> Callable[[Tensor], Tensor]:
    return torch.compile(function) if config.compile == "on" else function
