"""Augmentation, mixup and CutMix; each is a function of its key alone.

The key of an image is (seed, epoch, index): its augmentation does not depend on the worker that computes it, nor on a
resume."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitcifar.config import TrainConfig
from vitcifar.data.contact_sheet import contact_sheet
from vitcifar.data.dataset import ImageDataset
from vitcifar.model.vit import v2


def augment(image: np.ndarray, name: str, key: Sequence[int]) -> np.ndarray:
    """Augment one image, uint8 (H, W, 3), with the policy `name`; the size does not change.

    trivial: Müller & Hutter 2021; rand: Cubuk et al. 2020, both with torchvision's defaults.
    """
    if name == "none":
        return image
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator of the CPU
        torch.default_generator.manual_seed(int(np.random.default_rng(key).integers(2**63)))
        return np.array(transform(name, *image.shape[:2])(Image.fromarray(image)))


@functools.lru_cache(maxsize=64)
def transform(name: str, height: int, width: int) -> Callable[[Image.Image], Image.Image]:
    """The policy `name` for images of this size; on PIL images, since torch's threads cost more than small images."""
    # Crops are shifted by up to 1/8 of the side: the usual 4 pixels at CIFAR's 32.
    padding = [max(1, width // 8), max(1, height // 8)]  # left and right, top and bottom
    crop = v2.RandomCrop((height, width), padding=padding, padding_mode="symmetric")
    flip = v2.RandomHorizontalFlip()
    transforms: dict[str, Callable[[Image.Image], Image.Image]] = {
        "crop": crop,
        "flip": flip,
        "crop-flip": v2.Compose([flip, crop]),
        "trivial": v2.TrivialAugmentWide(),
        "rand": v2.RandAugment(),
    }
    return transforms[name]


def augmentation_sheet(dataset: ImageDataset, name: str, *, seed: int, num_images: int = 8) -> Image.Image:
    """A contact sheet with one row per image: the original, then its augmentations in the first seven epochs."""
    cells = [(index, epoch) for index in range(min(num_images, len(dataset))) for epoch in range(8)]
    shown = ImageDataset(
        images=[augment(dataset.images[i], name if epoch else "none", (seed, epoch, i)) for i, epoch in cells],
        labels=np.array([i for i, _ in cells]),  # a row of the sheet for each image
        class_names=tuple(dataset.class_names[label] for label in dataset.labels[:num_images]),
        ids=tuple(f"{dataset.ids[i]} {epoch}" for i, epoch in cells),
    )
    return contact_sheet(shown)


@dataclasses.dataclass(frozen=True)
class Mix:
    """How one batch is mixed: the weight of the image itself (lambda), and the box that CutMix pastes, or None."""

    weight: float
    box: tuple[slice, slice] | None

    def __call__(self, pixels: Tensor, partners: Tensor) -> Tensor:
        """Both (B, 3, S, S) -> (B, 3, S, S)."""
        if self.box is None:
            return torch.lerp(partners, pixels, self.weight)
        mixed = pixels.clone()
        mixed[:, :, self.box[0], self.box[1]] = partners[:, :, self.box[0], self.box[1]]
        return mixed


def sample_mix(config: TrainConfig, key: Sequence[int], image_size: int) -> Mix | None:
    """Sample mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) for a batch, with equal chance when both are on;
    None when both are off."""
    if not config.mixup and not config.cutmix:
        return None
    random = np.random.default_rng(key)
    if not config.cutmix or (config.mixup and random.random() < 0.5):
        return Mix(float(random.beta(config.mixup, config.mixup)), None)
    weight = random.beta(config.cutmix, config.cutmix)
    side = round(image_size * float(np.sqrt(1 - weight)))
    top, left = random.integers(-(side // 2), image_size - side // 2, size=2)  # the box is clipped at the border
    rows, columns = (slice(max(0, start), min(image_size, start + side)) for start in (int(top), int(left)))
    area = max(0, rows.stop - rows.start) * max(0, columns.stop - columns.start)
    return Mix(1 - area / image_size**2, (rows, columns))
