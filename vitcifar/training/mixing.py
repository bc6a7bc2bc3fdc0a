"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): each picture of a batch is mixed with a partner."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitcifar.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Mix:
    """How the pictures of one batch are mixed: the first one's share, and the box that CutMix puts in, or None."""

    share: float
    box: tuple[slice, slice] | None

    def __call__(self, pixels: Tensor, partners: Tensor) -> Tensor:
        """Both (B, 3, S, S) -> (B, 3, S, S)."""
        if self.box is None:
            return torch.lerp(partners, pixels, self.share)
        mixed = pixels.clone()
        mixed[:, :, self.box[0], self.box[1]] = partners[:, :, self.box[0], self.box[1]]
        return mixed


def draw_mix(config: TrainConfig, key: Sequence[int], image_size: int) -> Mix | None:
    """One mix for a batch, or None; with both alphas above 0 each batch takes one of the two, by even chance."""
    if not config.mixup and not config.cutmix:
        return None
    random = np.random.default_rng(key)
    if not config.cutmix or (config.mixup and random.random() < 0.5):
        return Mix(float(random.beta(config.mixup, config.mixup)), None)
    share = random.beta(config.cutmix, config.cutmix)
    side = round(image_size * float(np.sqrt(1 - share)))
    top, left = random.integers(-(side // 2), image_size - side // 2, size=2)  # the box may stick out
    rows, columns = (slice(max(0, at), min(image_size, at + side)) for at in (int(top), int(left)))
    area = max(0, rows.stop - rows.start) * max(0, columns.stop - columns.start)
    return Mix(1 - area / image_size**2, (rows, columns))
