"""As many threads as a step has work for, on a CPU that others may use too."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from vitcifar.training.network import Classifier, count_parameters

OPERATIONS_A_THREAD = 4e9  # in a training step

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def threads_for(network: Classifier, batch_size: int, available: int) -> int:
    """One thread for every 4 billion operations of a step.

    Threads wait for each other many times a step, turning in a circle. Measured with vit_tiny, batches of 32, torch
    2.13 on 2 cores: alone on the machine 17 ms a step with 2 threads and 25 with one; beside other programs 400 to
    2,000 ms with 2 threads, and still 25 with one.
    """
    operations = 6 * count_parameters(network) * network.backbone.seq_length * batch_size
    return max(1, min(available, int(operations / OPERATIONS_A_THREAD)))


@contextmanager
def enough_threads(network: Classifier, batch_size: int) -> Iterator[None]:
    """Inside, PyTorch works with as many threads as the network's steps have work for."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_for(network, batch_size, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_enough_threads(train: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """A training function that takes the network, two sets of pictures and the config, with the threads it needs."""

    @functools.wraps(train)
    def inside(*args: Given.args, **kwargs: Given.kwargs) -> Answer:
        network, _, _, config = args[:4]
        with enough_threads(network, config.batch_size):  # type: ignore[arg-type, attr-defined]
            return train(*args, **kwargs)

    return inside
