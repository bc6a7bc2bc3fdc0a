"""Pictures in, logits or embeddings out, with PyTorch: what ONNX is compared with."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from vitcifar.training.network import Classifier


def predict_logits(network: Classifier, images: np.ndarray | Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
    """Logits (N, K), float32, of uint8 pictures (N, H, W, 3) or of a list of (H, W, 3) of mixed sizes."""
    return _in_batches(network, network, images, batch_size, len(network.class_names))


def predict_embeddings(
    network: Classifier,
    images: np.ndarray | Sequence[np.ndarray],
    batch_size: int = 32,
    *,
    progress: Callable[[range], Iterable[int]] = iter,
) -> np.ndarray:
    """What the head sees of each picture (N, D), float32; pictures as for `predict_logits`.

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
    """What the network, set to answer and not to train, gives for all pictures: (N, width)."""
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
