"""Loads batches, in worker processes if asked: one that fails, dies or hangs ends training with its cause."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vitcifar.errors import TrainingError, VitCifarError, reason_of
from vitcifar.model.network import Images
from vitcifar.model.predict import to_device

TIMEOUT = 50  # seconds for one request; without a limit a hanging worker blocks training forever

Request = tuple[int, np.ndarray]  # an epoch, and indices into the dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Caught(Dataset[Any]):
    """The items of a source; an error is one too, since torch would send it with the traceback as its message."""

    source: Dataset[Images]

    def __getitem__(self, request: Request) -> Any:
        try:
            return self.source[request]
        except VitCifarError as error:
            return error
        except Exception as error:
            return TrainingError(f"A DataLoader worker failed ({reason_of(error)}): --num-workers 0 shows where.")


@contextlib.contextmanager
def supervised() -> Iterator[None]:
    """Turn torch's errors about its workers, raised wherever the process is when one dies, into one TrainingError.

    Any error ends the workers at once: one that hangs would outlive a command that is stopped.
    """
    try:
        yield
    except BaseException as error:
        end_workers()
        if not isinstance(error, RuntimeError) or "DataLoader" not in str(error):
            raise
        text = f"{error} {error.__cause__ or error.__context__ or ''}"
        cause = "ended"
        if "timed out" in text:
            cause = f"did not answer within {TIMEOUT} s"
        elif found := re.search(r"killed by signal: (\w[\w ]*)|exit code (\d+)", text):
            cause = f"was killed ({found[1]})" if found[1] else f"ended with exit code {found[2]}"
        advice = "type --num-workers 0, or free memory if it ran out"
        raise TrainingError(f"A DataLoader worker {cause}: {advice}; vitcifar train --resume last goes on.") from error


def end_workers() -> None:
    """End the processes of all loaders: by SIGTERM, at which torch's exit without complaint, and those that are stopped
    by SIGKILL, at which torch would raise an error wherever this process is then."""
    workers = torch.multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(1)
        with contextlib.suppress(RuntimeError):
            worker.kill()
            worker.join()


class Loader:
    """Loads requests in order and moves them to the device."""

    def __init__(self, source: Dataset[Images], num_workers: int, device: torch.device) -> None:
        self.source = source
        self.device = device
        self.requests: list[Request] = []  # the workers' sampler; refilled for every epoch, so that they outlive one
        self.workers: DataLoader[Images] | None = None
        if num_workers:
            self.workers = DataLoader(
                Caught(source),
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
        for images in loaded:
            if isinstance(images, VitCifarError):
                raise images
            yield to_device(images, self.device)
