"""What frozen parts make of the pictures, computed once and kept in memory: epochs then train on that alone."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vitcifar.config import TrainConfig
from vitcifar.training.batches import Loader, Request
from vitcifar.training.network import Classifier
from vitcifar.training.precision import autocast
from vitcifar.training.processes import num_processes, rank, sum_over_processes

PICTURES_AT_ONCE = 64


class Features(Dataset):
    """Frozen parts' answers to every view of every picture; epoch e sees view e, and starts anew after the last."""

    def __init__(self, views: Tensor) -> None:
        self.views = views  # (V, N, D), or (V, N, T, D) below blocks that train

    def __getitem__(self, request: Request) -> Tensor:
        epoch, places = request
        return self.views[(epoch - 1) % len(self.views), torch.from_numpy(places)]


def shape_of_features(network: Classifier, depth: int) -> tuple[int, ...]:
    """What `network.lower` gives for one picture at this depth."""
    hidden_size = network.backbone.hidden_dim
    return (hidden_size,) if depth > len(network.blocks) else (network.backbone.seq_length, hidden_size)


def plan_cache(network: Classifier, config: TrainConfig, depth: int | None, sizes: tuple[int, int]) -> tuple[int, str]:
    """How many views to keep of the training pictures (0 = keep nothing), and the sentence that says why.

    `sizes` are the numbers of training and validation pictures.
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
    what = f"{num_views} view{'s' * (num_views > 1)} of {sizes[0]:,} training and {sizes[1]:,} validation pictures"
    if gigabytes > config.cache_memory:
        return 0, (
            f"Keeping what frozen parts make of {what} would take {gigabytes:.2f} GB, more than cache_memory "
            f"{config.cache_memory:g}: they are computed in every epoch."
        )
    return num_views, f"Frozen parts are computed once, for {what}: {gigabytes:.3f} GB in memory."


@torch.no_grad()
def compute_features(
    network: Classifier, loader: Loader, num_pictures: int, depth: int, *, num_views: int, precision: str
) -> Features:
    """Run the frozen parts over every view of every picture; several processes share the work."""
    network.eval()
    shape = shape_of_features(network, depth)
    views = torch.zeros(num_views, num_pictures, *shape)
    mine = np.arange(num_pictures)[rank() :: num_processes()]
    chunks = [mine[start : start + PICTURES_AT_ONCE] for start in range(0, len(mine), PICTURES_AT_ONCE)]
    requests = [(view + 1, chunk) for view in range(num_views) for chunk in chunks]
    answers = loader(requests)
    for (epoch, chunk), images in zip(tqdm(requests, desc="frozen parts", disable=None), answers, strict=True):
        with autocast(loader.device, precision):
            tokens = network.lower(network.preprocess(images), depth)
        views[epoch - 1, torch.from_numpy(chunk)] = tokens.float().cpu()
    return Features(sum_over_processes(views.to(loader.device)).cpu() if num_processes() > 1 else views)
