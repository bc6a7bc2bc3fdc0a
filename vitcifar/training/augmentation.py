"""Training pictures varied by name, as uint8 at their own size, before the network's preprocessing.

What a picture becomes depends on its key (seed, epoch, place in the data) alone: it is the same whichever process
prepares it, and after a resume.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from vitcifar.data.pictures import Pictures
from vitcifar.data.preview import preview_sheet
from vitcifar.training.vit import transforms

PADDING = 8  # a picture is moved by up to 1/8 of its side: 4 pixels of CIFAR's 32, as is usual there


def augment(image: np.ndarray, name: str, key: Sequence[int]) -> np.ndarray:
    """One picture, uint8 (H, W, 3), varied in the way `name` says; the same size comes out.

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
    """The picture cut out anew from itself with a mirrored border."""
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


def augmented_sheet(pictures: Pictures, name: str, *, seed: int, num_pictures: int = 8) -> Image.Image:
    """A sheet with a row for each of a few pictures: as it is, then as training sees it in the first epochs."""
    rows = range(min(num_pictures, len(pictures)))
    images, labels, ids = [], [], []
    for row in rows:
        for epoch in range(8):
            image = pictures.images[row]
            images.append(image if epoch == 0 else augment(image, name, (seed, epoch, row)))
            labels.append(row)
            ids.append(f"{pictures.ids[row]} {epoch}")
    names = tuple(f"{pictures.class_names[pictures.labels[row]]}" for row in rows)
    shown = Pictures(images=images, labels=np.array(labels, np.int64), class_names=names, ids=tuple(ids))
    return preview_sheet(shown)
