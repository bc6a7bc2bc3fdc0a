"""What a stage trains on: pictures through the whole network, or what frozen parts made of them through the rest."""

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vitcifar.config import TrainConfig
from vitcifar.data.pictures import Pictures
from vitcifar.training.batches import AugmentedPictures, Images, Loader
from vitcifar.training.features import compute_features, plan_cache
from vitcifar.training.network import Classifier, frozen_depth


@dataclasses.dataclass(frozen=True)
class Feed:
    """Loaders of the training and validation data, and the way from what they give to logits (B, K)."""

    train: Loader
    validation: Loader
    prepare: Callable[[Images], Tensor]
    classify: Callable[[Tensor], Tensor]


def prepare_feed(
    network: Classifier,
    train: Pictures,
    validation: Pictures,
    config: TrainConfig,
    train_layers: str,
    *,
    precision: str,
    say: Callable[[str], object],
) -> Feed:
    """Decide whether frozen parts are computed once, say so, and do it."""
    device = network.head.weight.device
    pictures = Loader(AugmentedPictures(train, config.augmentation, config.seed), config.num_workers, device)
    unvaried = Loader(AugmentedPictures(validation, "none", config.seed), 0, device)
    depth = frozen_depth(network, train_layers)
    num_views, sentence = plan_cache(network, config, depth, (len(train), len(validation)))
    if sentence:
        say(sentence)
    if depth is None or num_views == 0:
        return Feed(pictures, unvaried, network.preprocess, compiled(network.from_pixels, config))
    compute = partial(compute_features, network, depth=depth, precision=precision)
    kept = compute(loader=pictures, num_pictures=len(train), num_views=num_views)
    kept_validation = compute(loader=unvaried, num_pictures=len(validation), num_views=1)
    upper = compiled(partial(network.upper, depth=depth), config)
    return Feed(Loader(kept, 0, device), Loader(kept_validation, 0, device), as_it_is, upper)


def as_it_is(tokens: Images) -> Tensor:
    assert isinstance(tokens, Tensor), "features are one tensor"
    return tokens


def compiled(function: Callable[[Tensor], Tensor], config: TrainConfig) -> Callable[[Tensor], Tensor]:
    return torch.compile(function) if config.compile == "on" else function
