"""What every step trains on: which images, augmented, mixed, or as cached features of the frozen layers.

Augmentation, mixup and CutMix are functions of their key alone. The key of an image is (seed, epoch, index): its
augmentation does not depend on the worker that computes it, nor on a resume."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vitcifar.config import TrainConfig
from vitcifar.data.contact_sheet import contact_sheet
from vitcifar.data.dataset import ImageDataset
from vitcifar.model.network import Classifier, Images
from vitcifar.model.predict import to_batch
from vitcifar.model.vit import v2
from vitcifar.progress import bar
from vitcifar.training.distributed import autocast, num_processes, rank, sum_over_processes
from vitcifar.training.feature_cache import FeatureCache, Key
from vitcifar.training.loader import Loader, Request

IMAGES_PER_BATCH = 64  # in the frozen layers


@dataclasses.dataclass(frozen=True)
class Batch:
    """One optimizer step: its number of images over all processes, and this process's share in micro-batches.

    A micro-batch is a pair: the indices of its images, and of the partners that mixup and CutMix mix them with.
    """

    size: int
    micro_batches: tuple[tuple[np.ndarray, np.ndarray], ...]


def plan_epoch(num_images: int, config: TrainConfig, epoch: int, *, rank: int, num_processes: int) -> list[Batch]:
    """The batches of an epoch, in a random order: the same for any number of micro-batches and processes."""
    order = np.random.default_rng((config.seed, epoch)).permutation(num_images)
    batches = []
    for start in range(0, num_images, config.batch_size):
        indices = order[start : start + config.batch_size]
        partners = indices[::-1]
        rows = np.arange(len(indices))[rank::num_processes]
        parts = [part for part in np.array_split(rows, config.accumulation_steps) if len(part)]
        batches.append(Batch(len(indices), tuple((indices[part], partners[part]) for part in parts)))
    return batches


@dataclasses.dataclass(frozen=True, eq=False)
class AugmentedImages(Dataset[Images]):
    """The images of a request, augmented."""

    dataset: ImageDataset
    augmentation: str
    seed: int

    def __getitem__(self, request: Request) -> Images:
        epoch, indices = request
        images = self.dataset.images
        return to_batch(
            [augment(images[index], self.augmentation, (self.seed, epoch, int(index))) for index in indices]
        )


def plan_cache(network: Classifier, config: TrainConfig, depth: int | None, sizes: tuple[int, int]) -> tuple[int, str]:
    """Number of views to cache of each training image (0 = no cache), and a message with the reason.

    `sizes` are the numbers of training and validation images.
    """
    if depth is None:
        return 0, ""
    if config.num_views == 0:
        return 0, "num_views is 0: frozen features are recomputed in every epoch."
    if config.mixup or config.cutmix:
        return 0, "mixup and cutmix blend pixels: frozen features are recomputed in every epoch."
    num_views = 1 if config.augmentation == "none" else config.num_views
    num_values = (num_views * sizes[0] + sizes[1]) * int(np.prod(network.features_shape(depth)))
    gigabytes = num_values * 4 / 1e9
    if gigabytes > config.cache_memory:
        return 0, (
            f"The feature cache needs {gigabytes:.2f} GB, more than cache_memory ({config.cache_memory:g} GB): "
            "features are recomputed in every epoch."
        )
    views = f"{num_views} view{'s' * (num_views > 1)} of {sizes[0]:,} training and {sizes[1]:,} validation images"
    return num_views, f"Frozen features are computed once, for {views}: the feature cache takes {gigabytes:.3f} GB."


@dataclasses.dataclass(frozen=True, eq=False)
class CachedFeatures(Dataset[Images]):
    """Features of every augmented view of every image; epoch e takes view e, and starts over after the last view."""

    views: Tensor  # (V, N, D), or (V, N, T, D) below trainable blocks

    def __getitem__(self, request: Request) -> Tensor:
        epoch, indices = request
        return self.views[(epoch - 1) % len(self.views), torch.from_numpy(indices)]


def cached_features(
    network: Classifier,
    loader: Loader,
    *,
    depth: int,
    num_views: int,
    precision: str,
    cache: FeatureCache | None,
    key: Callable[[], Key],
) -> CachedFeatures:
    """The features of the images that a loader augments: computed, or those that an earlier run has kept on disk under
    the `key` of the network."""
    source = loader.source
    assert isinstance(source, AugmentedImages)
    num_images, augmentation = len(source.dataset), source.augmentation
    compute = partial(
        compute_features, network, loader, num_images, depth=depth, num_views=num_views, precision=precision
    )
    if cache is None:
        return CachedFeatures(compute())
    views = "none" if augmentation == "none" else [augmentation, source.seed, num_views]

    def of_images() -> Key:
        return {**key(), "images": source.dataset.fingerprint, "batch_size": IMAGES_PER_BATCH, "views": views}

    return CachedFeatures(cache.get(of_images, (num_views, num_images, *network.features_shape(depth)), compute))


def compute_features(
    network: Classifier, loader: Loader, num_images: int, *, depth: int, num_views: int, precision: str
) -> Tensor:
    """Run the frozen layers on every view of every image; the work is shared by all processes."""
    network.eval()

    def compute(images: Images) -> Tensor:
        return network.forward_features(network.preprocess(images), depth)

    sizes = (num_views, num_images, *network.features_shape(depth))
    return compute_views(compute, loader, sizes, precision=precision, title="Frozen features").views


@torch.no_grad()
def compute_views(
    compute: Callable[[Images], Tensor], loader: Loader, sizes: tuple[int, ...], *, precision: str, title: str
) -> CachedFeatures:
    """What `compute` makes of every view of every image, (V, N, ...) as in `sizes`."""
    num_views, num_images = sizes[:2]
    views = torch.zeros(sizes)
    own = np.arange(num_images)[rank() :: num_processes()]
    chunks = [own[start : start + IMAGES_PER_BATCH] for start in range(0, len(own), IMAGES_PER_BATCH)]
    requests = [(view + 1, chunk) for view in range(num_views) for chunk in chunks]
    progress = bar(requests, title, "batches", disable=None if rank() == 0 else True)
    for (epoch, chunk), images in zip(progress, loader(requests), strict=True):
        with autocast(loader.device, precision):
            features = compute(images)
        views[epoch - 1, torch.from_numpy(chunk)] = features.float().cpu()
    return CachedFeatures(sum_over_processes(views.to(loader.device)).cpu() if num_processes() > 1 else views)


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

    def scaled(self, ratio: float) -> "Mix":
        """The same mix for a network whose input size is `ratio` times as large."""
        if self.box is None or ratio == 1:
            return self
        rows, columns = (slice(round(side.start * ratio), round(side.stop * ratio)) for side in self.box)
        return Mix(self.weight, (rows, columns))


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
