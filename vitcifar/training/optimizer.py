"""Optimizers by name, the learning-rate schedule, and the exponential moving average (EMA) of the weights."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vitcifar.config import TrainConfig

BLOCK = "backbone.encoder.layers.encoder_layer_"


def build_optimizer(weights: Mapping[str, Tensor], config: TrainConfig, num_blocks: int) -> torch.optim.Optimizer:
    """The optimizer over these weights, in parameter groups that carry the `scale` of their learning rate.

    Weight decay applies to matrices only: not to norms, biases, class token and position embedding. Layer-wise
    learning-rate decay: Bao et al. 2022, "BEiT".
    """
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, weight in weights.items():
        scale = config.layer_decay ** (num_blocks + 1 - layer_of(name, num_blocks))
        groups.setdefault((scale, weight.ndim in (2, 4)), []).append(weight)
    settings: list[dict[str, Any]] = [
        {"params": members, "weight_decay": config.weight_decay if is_matrix else 0.0, "scale": scale}
        for (scale, is_matrix), members in sorted(groups.items(), key=lambda group: group[0])
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True)
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(settings, lr=config.learning_rate, fused=True)


def layer_of(name: str, num_blocks: int) -> int:
    """0 for patch and position embedding, 1 ... for the blocks, num_blocks + 1 for the final norm and the head."""
    if name.startswith(BLOCK):
        return 1 + int(name.removeprefix(BLOCK).split(".")[0])
    return num_blocks + 1 if name.startswith(("head.", "backbone.encoder.ln.")) else 0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def learning_rate(step: int, *, num_steps: int, warmup_steps: int, peak: float, schedule: str) -> float:
    """The learning rate of step 0, 1, ...: linear warm-up to `peak`, then decay towards 0 at `num_steps`.

    Cosine: Loshchilov & Hutter 2017.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)  # 0 ... 1
    return peak * (1 - progress) if schedule == "linear" else peak * (1 + math.cos(math.pi * progress)) / 2


class EMA:
    """Exponential moving average of weights; the decay is warmed up, so that short runs benefit too."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Average in the weights after an optimizer step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        latest = [weights[name].detach() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), latest, 1 - decay)

    @contextmanager
    def swapped_into(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block, `weights` hold the averages."""
        with torch.no_grad():
            backup = {name: weights[name].clone() for name in self.weights}
            for name, weight in self.weights.items():
                weights[name].copy_(weight)
            yield
            for name, weight in backup.items():
                weights[name].copy_(weight)

    def state_dict(self) -> dict[str, object]:
        return {"num_updates": self.num_updates, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        for name, weight in state["weights"].items():
            self.weights[name].copy_(weight)
