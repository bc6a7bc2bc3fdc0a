"""The attention that a network's blocks paid, read off while it answers.

Letters in the shapes: B pictures, L blocks, h heads, T tokens (1 class token + patches).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitcifar.training.network import Classifier
from vitcifar.training.predict import take


def attention_weights(
    network: Classifier, images: np.ndarray | Sequence[np.ndarray], batch_size: int = 8
) -> Iterator[np.ndarray]:
    """For each picture, uint8 (H, W, 3), the weights of every block and head: float32 (L, h, T, T), rows sum to 1.

    A ViT-B/16 at 224 pixels has 22 MB of them a picture: take what is needed of one before asking for the next.
    """
    was_training = network.training
    network.eval()
    try:
        for start in range(0, len(images), batch_size):
            places = range(start, min(start + batch_size, len(images)))
            with torch.no_grad(), kept_weights(network) as weights:
                network(take(images, places, network.head.weight.device))
            yield from torch.stack(weights, dim=1).float().cpu().numpy()  # (B, L, h, T, T)
    finally:
        network.train(was_training)


@contextlib.contextmanager
def kept_weights(network: Classifier) -> Iterator[list[Tensor]]:
    """A list that each block's attention weights (B, h, T, T) are added to while pictures go through the network.

    torchvision's blocks ask their attention not to tell its weights; here the question is changed on its way.
    """
    weights: list[Tensor] = []

    def ask(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**named, "need_weights": True, "average_attn_weights": False}

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        weights.append(output[1])

    with contextlib.ExitStack() as hooks:
        for block in network.blocks:
            attention = block.get_submodule("self_attention")
            hooks.callback(attention.register_forward_pre_hook(ask, with_kwargs=True).remove)
            hooks.callback(attention.register_forward_hook(keep).remove)
        yield weights
