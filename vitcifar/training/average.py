"""A moving average of the weights that train (EMA), which often scores better than the last weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """The average of some weights over the steps; young averages forget faster, so that a short run has one too."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights after a step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        latest = [weights[name].detach() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), latest, 1 - decay)

    @contextmanager
    def in_place_of(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the network's weights are the averaged ones."""
        with torch.no_grad():
            kept = {name: weights[name].clone() for name in self.weights}
            for name, weight in self.weights.items():
                weights[name].copy_(weight)
            yield
            for name, weight in kept.items():
                weights[name].copy_(weight)

    def state_dict(self) -> dict[str, object]:
        return {"num_updates": self.num_updates, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.num_updates = state["num_updates"]
        for name, weight in state["weights"].items():
            self.weights[name].copy_(weight)
