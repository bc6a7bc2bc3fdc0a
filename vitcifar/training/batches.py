"""Which images every step takes, and who prepares them: this process, or workers beside it."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import TrainingError
from vitcifar.training.augmentation import augment

WORKER_SECONDS = 120  # without a limit a worker that hangs would block for ever

Images = Tensor | list[Tensor]  # uint8 (B, H, W, 3), or (H, W, 3) each when sizes are mixed
Request = tuple[int, np.ndarray]  # an epoch, and places in the data


@dataclasses.dataclass(frozen=True)
class Batch:
    """The images of one optimizer step: those of all processes, and this one's, in parts that fit into memory.

    `partners` are what mixup and CutMix blend each image with: the batch from its other end.
    """

    size: int
    parts: tuple[np.ndarray, ...]
    partners: tuple[np.ndarray, ...]


def plan_epoch(
    num_images: int, *, batch_size: int, num_parts: int, key: Sequence[int], rank: int, num_processes: int
) -> list[Batch]:
    """The batches of an epoch in an order drawn from `key`: the same however they are split up."""
    order = np.random.default_rng(key).permutation(num_images)
    batches = []
    for start in range(0, num_images, batch_size):
        whole = order[start : start + batch_size]
        indices = np.arange(len(whole))[rank::num_processes]
        parts = [part for part in np.array_split(indices, num_parts) if len(part)]
        partners = tuple(whole[::-1][part] for part in parts)
        batches.append(Batch(len(whole), tuple(whole[part] for part in parts), partners))
    return batches


class AugmentedImages(Dataset):
    """The images of a request, stacked when they have one size."""

    def __init__(self, dataset: ImageDataset, augmentation: str, seed: int) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, request: Request) -> Images:
        epoch, indices = request
        images = self.dataset.images
        if self.augmentation == "none" and isinstance(images, np.ndarray):
            return torch.from_numpy(images[indices])
        varied = [augment(images[index], self.augmentation, (self.seed, epoch, int(index))) for index in indices]
        if len({image.shape for image in varied}) == 1:
            return torch.from_numpy(np.stack(varied))
        return [torch.from_numpy(np.ascontiguousarray(image)) for image in varied]


class Requests(Sampler):
    """What the workers are asked for next; filled before every epoch, so that the workers live on between them."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


class Loader:
    """Answers requests in their order, on the device."""

    def __init__(self, source: Dataset, num_workers: int, device: torch.device) -> None:
        self.source = source
        self.device = device
        self.requests = Requests()
        self.workers = (
            DataLoader(
                source,
                batch_size=None,  # a request is a batch already
                sampler=self.requests,
                num_workers=num_workers,
                persistent_workers=True,
                timeout=WORKER_SECONDS,
                pin_memory=device.type == "cuda",
            )
            if num_workers
            else None
        )

    def __call__(self, requests: Sequence[Request]) -> Iterator[Images]:
        self.requests.requests = list(requests)
        answers = (self.source[request] for request in requests) if self.workers is None else iter(self.workers)
        try:
            for images in answers:
                yield to_device(images, self.device)
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise TrainingError(
                f"A worker that prepares batches died or was silent for {WORKER_SECONDS} s: type --num-workers 0."
            ) from error


def to_device(images: Images, device: torch.device) -> Images:
    if isinstance(images, Tensor):
        return images.to(device, non_blocking=True)
    return [image.to(device, non_blocking=True) for image in images]
