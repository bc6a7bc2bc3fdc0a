"""LoRA (Hu et al. 2021) on the attention projections: a low-rank change beside weights that stay as they are."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """weight -> weight + up @ down. It starts as no change at all, since `up` is zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def projections(block: nn.Module) -> list[tuple[nn.Module, str]]:
    """The query-key-value and the output projection of a block's attention."""
    attention = block.self_attention
    return [(attention, "in_proj_weight"), (attention.out_proj, "weight")]  # type: ignore[list-item, union-attr]


def add_lora(blocks: Iterable[nn.Module], rank: int, seed: int) -> None:
    """Put a low-rank change on the attention of these blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in blocks:
            for module, name in projections(block):
                parametrize.register_parametrization(module, name, LowRank(getattr(module, name), rank))


def train_lora(blocks: Iterable[nn.Module]) -> None:
    """Of these blocks let only the low-rank changes train."""
    for block in blocks:
        block.requires_grad_(False)
        for module in block.modules():
            if isinstance(module, LowRank):
                module.requires_grad_(True)


def merge_lora(network: nn.Module) -> None:
    """Add the changes to the weights, which leaves a network of the plain shape: it exports as any other."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            for name in list(lists):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
