"""Optimizers by name: weight decay on matrices alone, smaller learning rates for blocks further from the head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitcifar.config import TrainConfig

BLOCK = "backbone.encoder.layers.encoder_layer_"


def build_optimizer(weights: Mapping[str, Tensor], config: TrainConfig, num_blocks: int) -> torch.optim.Optimizer:
    """The optimizer over these weights, in groups that carry their `scale` of the learning rate.

    Norms, biases, the class token and positions never decay. Layer decay: Bao et al. 2022, "BEiT".
    """
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, weight in weights.items():
        scale = config.layer_decay ** (num_blocks + 1 - height(name, num_blocks))
        groups.setdefault((scale, weight.ndim in (2, 4)), []).append(weight)
    settings: list[dict[str, Any]] = [
        {"params": members, "weight_decay": config.weight_decay if is_matrix else 0.0, "scale": scale}
        for (scale, is_matrix), members in sorted(groups.items(), key=lambda group: group[0])
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(settings, lr=config.learning_rate, fused=True)


def height(name: str, num_blocks: int) -> int:
    """0 for the patches and positions, 1 ... for the blocks, one more for what is above them."""
    if name.startswith(BLOCK):
        return 1 + int(name.removeprefix(BLOCK).split(".")[0])
    return num_blocks + 1 if name.startswith(("head.", "backbone.encoder.ln.")) else 0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
