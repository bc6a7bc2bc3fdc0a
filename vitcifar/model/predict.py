"""Images in; logits, embeddings or attention weights out, with PyTorch: what ONNX is compared with.

Letters in the shapes: B images, L blocks, h heads, T tokens (1 class token + patches)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitcifar.model.network import Classifier


def predict_logits(network: Classifier, images: np.ndarray | Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
    """Logits (N, K), float32, of uint8 images (N, H, W, 3) or of a list of (H, W, 3) of mixed sizes."""
    return _in_batches(network, network, images, batch_size, len(network.class_names))


def predict_embeddings(
    network: Classifier,
    images: np.ndarray | Sequence[np.ndarray],
    batch_size: int = 32,
    *,
    progress: Callable[[range], Iterable[int]] = iter,
) -> np.ndarray:
    """What the head sees of each image (N, D), float32; images as for `predict_logits`.

    `progress` is wrapped around the batches, for a progress bar.
    """
    return _in_batches(network, network.embed, images, batch_size, network.head.in_features, progress)


def _in_batches(
    network: Classifier,
    ask: Callable[[Tensor | list[Tensor]], Tensor],
    images: np.ndarray | Sequence[np.ndarray],
    batch_size: int,
    width: int,
    progress: Callable[[range], Iterable[int]] = iter,
) -> np.ndarray:
    """What the network, set to answer and not to train, gives for all images: (N, width)."""
    device = network.head.weight.device
    was_training = network.training
    network.eval()
    rows = [np.zeros((0, width), np.float32)]
    with torch.no_grad():
        for start in progress(range(0, len(images), batch_size)):
            batch = take(images, range(start, min(start + batch_size, len(images))), device)
            rows.append(ask(batch).float().cpu().numpy())
    network.train(was_training)
    return np.concatenate(rows)


def take(
    images: np.ndarray | Sequence[np.ndarray], indices: Sequence[int] | np.ndarray, device: torch.device
) -> Tensor | list[Tensor]:
    """A batch on the device, still uint8: one tensor (B, H, W, 3), or a list of (H, W, 3) when sizes are mixed."""
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images[np.asarray(indices)]).to(device, non_blocking=True)
    batch = [images[index] for index in indices]
    if len({image.shape for image in batch}) == 1:
        return torch.from_numpy(np.stack(batch)).to(device, non_blocking=True)
    return [torch.from_numpy(np.ascontiguousarray(image)).to(device, non_blocking=True) for image in batch]


def attention_weights(
    network: Classifier, images: np.ndarray | Sequence[np.ndarray], batch_size: int = 8
) -> Iterator[np.ndarray]:
    """For each image, uint8 (H, W, 3), the weights of every block and head: float32 (L, h, T, T), rows sum to 1.

    A ViT-B/16 at 224 pixels has 22 MB of them an image: take what is needed of one before asking for the next.
    """
    was_training = network.training
    network.eval()
    try:
        for start in range(0, len(images), batch_size):
            indices = range(start, min(start + batch_size, len(images)))
            with torch.no_grad(), capture_attention(network) as weights:
                network(take(images, indices, network.head.weight.device))
            yield from torch.stack(weights, dim=1).float().cpu().numpy()  # (B, L, h, T, T)
    finally:
        network.train(was_training)


@contextlib.contextmanager
def capture_attention(network: Classifier) -> Iterator[list[Tensor]]:
    """A list that each block's attention weights (B, h, T, T) are added to while images go through the network.

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
