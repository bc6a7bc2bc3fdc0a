"""LoRA (Hu et al. 2021): low-rank updates of the attention projections, trained instead of the weights themselves."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """LoRA (Hu et al. 2021): weight -> weight + up @ down; `up` starts at zero, so that the network is unchanged."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def projections(blocks: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """The query-key-value and the output projection of each block's attention: module and name of the weight."""
    for block in blocks:
        attention = block.get_submodule("self_attention")
        yield attention, "in_proj_weight"
        yield attention.get_submodule("out_proj"), "weight"


def add_lora(blocks: Iterable[nn.Module], rank: int, seed: int) -> None:
    """Add a low-rank update to the attention projections of these blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module, name in projections(blocks):
            parametrize.register_parametrization(module, name, LowRank(getattr(module, name), rank))


def train_lora(blocks: Iterable[nn.Module]) -> None:
    """Freeze these blocks except for their low-rank updates."""
    for block in blocks:
        block.requires_grad_(False)
        for module in block.modules():
            if isinstance(module, LowRank):
                module.requires_grad_(True)


def merge_lora(blocks: Iterable[nn.Module]) -> None:
    """Add the updates to the weights and remove the parametrizations: the network exports like any other."""
    for module, name in projections(blocks):
        if parametrize.is_parametrized(module, name):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
