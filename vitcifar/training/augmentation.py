"""Training images augmented by name, mixup and CutMix; each a function of its key alone.

The key is (seed, epoch, index): an image is augmented alike whichever process prepares it, and after a resume."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitcifar.config import TrainConfig
from vitcifar.data.contact_sheet import contact_sheet
from vitcifar.data.dataset import ImageDataset
from vitcifar.model.vit import transforms

PADDING = 8  # an image is moved by up to 1/8 of its side: 4 pixels of CIFAR's 32, as is usual there


def augment(image: np.ndarray, name: str, key: Sequence[int]) -> np.ndarray:
    """One image, uint8 (H, W, 3), varied in the way `name` says; the same size comes out.

    trivial: Müller & Hutter 2021; rand: Cubuk et al. 2020, both with torchvision's settings.
    """
    if name == "none":
        return image
    if name in ("trivial", "rand"):
        return from_torchvision(image, name, key)
    random = np.random.default_rng(key)
    if name in ("flip", "crop-flip") and random.random() < 0.5:
        image = image[:, ::-1]
    return moved(image, random) if name in ("crop", "crop-flip") else np.ascontiguousarray(image)


def moved(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The image cut out anew from itself with a mirrored border."""
    height, width = image.shape[:2]
    down, right = (max(1, height // PADDING), max(1, width // PADDING))
    border = ((down, down), (right, right), (0, 0))
    padded = np.pad(image, border, mode="symmetric")
    top, left = random.integers(0, 2 * down + 1), random.integers(0, 2 * right + 1)
    return np.ascontiguousarray(padded[top : top + height, left : left + width])


def from_torchvision(image: np.ndarray, name: str, key: Sequence[int]) -> np.ndarray:
    """torchvision draws from torch's global numbers: they are seeded with the key, and put back after."""
    transform = transforms.TrivialAugmentWide() if name == "trivial" else transforms.RandAugment()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng(key).integers(2**63)))
        varied = transform(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))  # (3, H, W)
    return varied.permute(1, 2, 0).contiguous().numpy()


def augmentation_sheet(dataset: ImageDataset, name: str, *, seed: int, num_images: int = 8) -> Image.Image:
    """A sheet with a row for each of a few images: as it is, then as training sees it in the first epochs."""
    rows = range(min(num_images, len(dataset)))
    images, labels, ids = [], [], []
    for row in rows:
        for epoch in range(8):
            image = dataset.images[row]
            images.append(image if epoch == 0 else augment(image, name, (seed, epoch, row)))
            labels.append(row)
            ids.append(f"{dataset.ids[row]} {epoch}")
    names = tuple(f"{dataset.class_names[dataset.labels[row]]}" for row in rows)
    shown = ImageDataset(images=images, labels=np.array(labels, np.int64), class_names=names, ids=tuple(ids))
    return contact_sheet(shown)


@dataclasses.dataclass(frozen=True)
class Mix:
    """How the images of one batch are mixed: the first one's share, and the box that CutMix puts in, or None."""

    share: float
    box: tuple[slice, slice] | None

    def __call__(self, pixels: Tensor, partners: Tensor) -> Tensor:
        """Both (B, 3, S, S) -> (B, 3, S, S)."""
        if self.box is None:
            return torch.lerp(partners, pixels, self.share)
        mixed = pixels.clone()
        mixed[:, :, self.box[0], self.box[1]] = partners[:, :, self.box[0], self.box[1]]
        return mixed


def sample_mix(config: TrainConfig, key: Sequence[int], image_size: int) -> Mix | None:
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
