"""Several processes that train one network together, started by torchrun; one process when nothing was started."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started (gloo on the CPU, nccl on GPUs); alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def num_processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of what every process holds, in place."""
    if num_processes() > 1:
        distributed.all_reduce(tensor)
    return tensor


def sum_gradients(weights: Iterable[Tensor]) -> None:
    """Give every process the sum of all processes' gradients: they go through one flat buffer."""
    if num_processes() == 1:
        return
    weights = list(weights)
    flat = torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights])
    distributed.all_reduce(flat)
    for weight, summed in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.grad = summed.view_as(weight)


def wait_for_all() -> None:
    if num_processes() > 1:
        distributed.barrier()
