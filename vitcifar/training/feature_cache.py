"""What frozen layers compute from the images, kept in memory: epochs then train on that alone."""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.model.network import Classifier, frozen_depth
from vitcifar.training.batches import AugmentedImages, Images, Loader, Request
from vitcifar.training.distributed import num_processes, rank, sum_over_processes
from vitcifar.training.precision import autocast

IMAGES_PER_BATCH = 64


class CachedFeatures(Dataset):
    """Frozen parts' answers to every view of every image; epoch e sees view e, and starts anew after the last."""

    def __init__(self, views: Tensor) -> None:
        self.views = views  # (V, N, D), or (V, N, T, D) below blocks that train

    def __getitem__(self, request: Request) -> Tensor:
        epoch, indices = request
        return self.views[(epoch - 1) % len(self.views), torch.from_numpy(indices)]


def shape_of_features(network: Classifier, depth: int) -> tuple[int, ...]:
    """What `network.forward_features` gives for one image at this depth."""
    hidden_size = network.backbone.hidden_dim
    return (hidden_size,) if depth > len(network.blocks) else (network.backbone.seq_length, hidden_size)


def plan_cache(network: Classifier, config: TrainConfig, depth: int | None, sizes: tuple[int, int]) -> tuple[int, str]:
    """How many views to keep of the training images (0 = keep nothing), and the sentence that says why.

    `sizes` are the numbers of training and validation images.
    """
    if depth is None:
        return 0, ""
    if config.num_views == 0:
        return 0, "num_views is 0: frozen parts are computed in every epoch."
    if config.mixup or config.cutmix:
        return 0, "mixup and cutmix blend pixels: frozen parts are computed in every epoch."
    num_views = 1 if config.augmentation == "none" else config.num_views
    numbers = (num_views * sizes[0] + sizes[1]) * int(np.prod(shape_of_features(network, depth)))
    gigabytes = numbers * 4 / 1e9
    what = f"{num_views} view{'s' * (num_views > 1)} of {sizes[0]:,} training and {sizes[1]:,} validation images"
    if gigabytes > config.cache_memory:
        return 0, (
            f"Keeping what frozen parts make of {what} would take {gigabytes:.2f} GB, more than cache_memory "
            f"{config.cache_memory:g}: they are computed in every epoch."
        )
    return num_views, f"Frozen parts are computed once, for {what}: {gigabytes:.3f} GB in memory."


@torch.no_grad()
def compute_features(
    network: Classifier, loader: Loader, num_images: int, depth: int, *, num_views: int, precision: str
) -> CachedFeatures:
    """Run the frozen parts over every view of every image; several processes share the work."""
    network.eval()
    shape = shape_of_features(network, depth)
    views = torch.zeros(num_views, num_images, *shape)
    mine = np.arange(num_images)[rank() :: num_processes()]
    chunks = [mine[start : start + IMAGES_PER_BATCH] for start in range(0, len(mine), IMAGES_PER_BATCH)]
    requests = [(view + 1, chunk) for view in range(num_views) for chunk in chunks]
    answers = loader(requests)
    for (epoch, chunk), images in zip(tqdm(requests, desc="frozen parts", disable=None), answers, strict=True):
        with autocast(loader.device, precision):
            tokens = network.forward_features(network.preprocess(images), depth)
        views[epoch - 1, torch.from_numpy(chunk)] = tokens.float().cpu()
    return CachedFeatures(sum_over_processes(views.to(loader.device)).cpu() if num_processes() > 1 else views)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Loaders of the training and validation data, and the way from what they give to logits (B, K)."""

    train: Loader
    validation: Loader
    prepare: Callable[[Images], Tensor]
    classify: Callable[[Tensor], Tensor]


def prepare_inputs(
    network: Classifier,
    train: ImageDataset,
    validation: ImageDataset,
    config: TrainConfig,
    train_layers: str,
    *,
    precision: str,
    notify: Callable[[str], object],
) -> Inputs:
    """Decide whether frozen parts are computed once, say so, and do it."""
    device = network.head.weight.device
    dataset = Loader(AugmentedImages(train, config.augmentation, config.seed), config.num_workers, device)
    unvaried = Loader(AugmentedImages(validation, "none", config.seed), 0, device)
    depth = frozen_depth(network, train_layers)
    num_views, sentence = plan_cache(network, config, depth, (len(train), len(validation)))
    if sentence:
        notify(sentence)
    if depth is None or num_views == 0:
        return Inputs(dataset, unvaried, network.preprocess, compiled(network.from_pixels, config))
    compute = partial(compute_features, network, depth=depth, precision=precision)
    kept = compute(loader=dataset, num_images=len(train), num_views=num_views)
    kept_validation = compute(loader=unvaried, num_images=len(validation), num_views=1)
    upper = compiled(partial(network.forward_head, depth=depth), config)
    return Inputs(Loader(kept, 0, device), Loader(kept_validation, 0, device), as_it_is, upper)


def as_it_is(tokens: Images) -> Tensor:
    assert isinstance(tokens, Tensor), "features are one tensor"
    return tokens


def compiled(function: Callable[[Tensor], Tensor], config: TrainConfig) -> Callable[[Tensor], Tensor]:
    return torch.compile(function) if config.compile == "on" else function
