"""Which images every step trains on, and their loading, in this process or in DataLoader workers."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import TrainingError
from vitcifar.model.network import Images
from vitcifar.model.predict import to_batch, to_device
from vitcifar.training.augmentation import augment

TIMEOUT = 120  # seconds; without a limit a hanging worker blocks training forever

Request = tuple[int, np.ndarray]  # an epoch, and indices into the dataset


@dataclasses.dataclass(frozen=True)
class Batch:
    """One optimizer step: its number of images over all processes, and this process's share in micro-batches.

    A micro-batch is a pair: the indices of its images, and of the partners that mixup and CutMix mix them with.
    """

    size: int
    micro_batches: tuple[tuple[np.ndarray, np.ndarray], ...]


def plan_epoch(
    num_images: int, *, batch_size: int, num_micro_batches: int, key: Sequence[int], rank: int, num_processes: int
) -> list[Batch]:
    """The batches of an epoch, in an order drawn from `key`: the same for any number of micro-batches and processes."""
    order = np.random.default_rng(key).permutation(num_images)
    batches = []
    for start in range(0, num_images, batch_size):
        indices = order[start : start + batch_size]
        partners = indices[::-1]
        rows = np.arange(len(indices))[rank::num_processes]
        parts = [part for part in np.array_split(rows, num_micro_batches) if len(part)]
        batches.append(Batch(len(indices), tuple((indices[part], partners[part]) for part in parts)))
    return batches


class AugmentedImages(Dataset[Images]):
    """The images of a request, augmented."""

    def __init__(self, dataset: ImageDataset, augmentation: str, seed: int) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, request: Request) -> Images:
        epoch, indices = request
        images = self.dataset.images
        if self.augmentation == "none":
            return to_batch(images, indices)
        augmented = [augment(images[index], self.augmentation, (self.seed, epoch, int(index))) for index in indices]
        return to_batch(augmented, range(len(augmented)))


class Loader:
    """Loads requests in order and moves them to the device."""

    def __init__(self, source: Dataset[Images], num_workers: int, device: torch.device) -> None:
        self.source = source
        self.device = device
        self.requests: list[Request] = []  # the workers' sampler; refilled for every epoch, so that they outlive one
        self.workers: DataLoader[Images] | None = None
        if num_workers:
            self.workers = DataLoader(
                source,
                batch_size=None,  # a request is a batch already
                sampler=self.requests,
                num_workers=num_workers,
                persistent_workers=True,
                timeout=TIMEOUT,
                pin_memory=device.type == "cuda",
            )

    def __call__(self, requests: Sequence[Request]) -> Iterator[Images]:
        self.requests[:] = requests
        loaded = (self.source[request] for request in requests) if self.workers is None else iter(self.workers)
        try:
            for images in loaded:
                yield to_device(images, self.device)
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise TrainingError(
                f"A DataLoader worker died or did not answer within {TIMEOUT} s: type --num-workers 0."
            ) from error
