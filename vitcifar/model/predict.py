"""Logits, embeddings and attention weights of images in PyTorch: the reference that ONNX outputs are compared with.

Letters in the shapes: N images, B of a batch, L blocks, h heads, T tokens (1 class token + patches)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitcifar.data.dataset import stack
from vitcifar.model.network import Classifier, Images, evaluation_mode

Arrays = np.ndarray | Sequence[np.ndarray]  # uint8 (N, H, W, 3), or a list of (H, W, 3) when sizes are mixed
Progress = Callable[[range], Iterable[int]]  # wraps the iteration over batches, for a progress bar


def predict_logits(network: Classifier, images: Arrays, batch_size: int = 32) -> np.ndarray:
    """Logits (N, K), float32, of uint8 images (N, H, W, 3) or of a list of (H, W, 3) of mixed sizes."""
    return _predict(network, network, images, batch_size, len(network.class_names))


def predict_both(network: Classifier, images: Arrays, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) as of `predict_logits` and embeddings (N, D) as of `predict_embeddings`, in one pass."""
    embeddings = [np.zeros((0, network.head.in_features), np.float32)]

    def keep(head: nn.Module, inputs: tuple[Tensor]) -> None:
        embeddings.append(inputs[0].float().cpu().numpy())

    hook = network.head.register_forward_pre_hook(keep)
    try:
        logits = predict_logits(network, images, batch_size)
    finally:
        hook.remove()
    return logits, np.concatenate(embeddings)


def predict_embeddings(
    network: Classifier, images: Arrays, batch_size: int = 32, *, progress: Progress = iter
) -> np.ndarray:
    """Embeddings (N, D), float32: the input of the head; images as for `predict_logits`."""
    return _predict(network, network.embed, images, batch_size, network.head.in_features, progress)


def predict_head(network: Classifier, embeddings: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Logits (N, K), float32, of embeddings (N, D)."""
    with torch.no_grad():
        batches = torch.split(torch.from_numpy(embeddings).to(network.head.weight.device), batch_size)
        return np.concatenate([network.head(batch).float().cpu().numpy() for batch in batches])


def _predict(
    network: Classifier,
    forward: Callable[[Images], Tensor],
    images: Arrays,
    batch_size: int,
    width: int,
    progress: Progress = iter,
) -> np.ndarray:
    """`forward` over all images in batches, in evaluation mode: (N, width)."""
    outputs = [np.zeros((0, width), np.float32)]
    with evaluation_mode(network), torch.no_grad():
        for start in progress(range(0, len(images), batch_size)):
            batch = to_batch(images[start : start + batch_size], network.head.weight.device)
            outputs.append(forward(batch).float().cpu().numpy())
    return np.concatenate(outputs)


def to_batch(images: Arrays, device: torch.device | str = "cpu") -> Images:
    """Copy uint8 images to a tensor (B, H, W, 3), or to a list of (H, W, 3) when sizes are mixed."""
    batch = stack([*images])
    if isinstance(batch, np.ndarray):
        return to_device(torch.from_numpy(batch), device)
    return to_device([torch.from_numpy(np.array(image, order="C")) for image in batch], device)


def to_device(images: Images, device: torch.device | str) -> Images:
    if isinstance(images, Tensor):
        return images.to(device, non_blocking=True)
    return [image.to(device, non_blocking=True) for image in images]


def attention_weights(network: Classifier, images: Arrays, batch_size: int = 8) -> Iterator[np.ndarray]:
    """For each image, uint8 (H, W, 3), the attention weights of every block and head: float32 (L, h, T, T), rows sum
    to 1.

    ViT-B/16 at 224 pixels has 22 MB of them per image: reduce those of one image before requesting the next. A network
    that merges tokens has them of every token here: it computes without merging meanwhile.
    """
    with evaluation_mode(network), without_merging(network):
        for start in range(0, len(images), batch_size):
            with torch.no_grad(), capture_attention(network) as weights:
                network(to_batch(images[start : start + batch_size], network.head.weight.device))
            yield from torch.stack(weights, dim=1).float().cpu().numpy()  # (B, L, h, T, T)


@contextlib.contextmanager
def without_merging(network: Classifier) -> Iterator[None]:
    """The network with every token in every block."""
    before, network.token_merging = network.token_merging, 0
    try:
        yield
    finally:
        network.token_merging = before


@contextlib.contextmanager
def capture_attention(network: Classifier) -> Iterator[list[Tensor]]:
    """A list to which every block's attention weights (B, h, T, T) are appended during a forward pass.

    torchvision calls attention with need_weights=False; a pre-hook overrides it.
    """
    weights: list[Tensor] = []

    def request(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**named, "need_weights": True, "average_attn_weights": False}

    def append(module: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        weights.append(output[1])

    with contextlib.ExitStack() as hooks:
        for block in network.blocks:
            attention = block.get_submodule("self_attention")
            hooks.callback(attention.register_forward_pre_hook(request, with_kwargs=True).remove)
            hooks.callback(attention.register_forward_hook(append).remove)
        yield weights
