"""Data-parallel training: processes started by torchrun, or by this one, form a process group; else one process."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

TIMEOUT = timedelta(minutes=10)  # how long the other processes wait for the slowest


def is_worker() -> bool:
    """Whether this process only shares the training; rank 0 alone tracks, evaluates and releases."""
    return int(os.environ.get("RANK", "0")) > 0


@contextmanager
def spawn_workers(num_processes: int) -> Iterator[None]:
    """Start num_processes - 1 workers that run this process's command, and make this process rank 0.

    Leaving the block waits for the workers; an exception kills them. Under torchrun it does nothing.
    """
    if num_processes == 1 or "WORLD_SIZE" in os.environ:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    workers = []
    try:
        for rank in range(1, num_processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(threads)}
            environment = {**os.environ, **shared, **own}
            workers.append(subprocess.Popen(sys.orig_argv, env=environment, stdout=subprocess.DEVNULL))
        torch.set_num_threads(threads)
        os.environ.update({**shared, "RANK": "0", "LOCAL_RANK": "0"})
        yield
        for worker in workers:
            worker.wait()
    finally:
        for name in (*shared, "RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)
        for worker in workers:
            worker.kill()


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of the environment (gloo on CPUs, nccl on GPUs); a single process does nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def num_processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def broadcast(value: str) -> str:
    """Broadcast a string from rank 0."""
    if num_processes() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def barrier() -> None:
    """Wait until every process is here."""
    if num_processes() > 1:
        distributed.barrier()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """All-reduce a tensor in place: the sum over all processes."""
    if num_processes() > 1:
        distributed.all_reduce(tensor)
    return tensor


def sum_gradients(weights: Iterable[Tensor]) -> None:
    """All-reduce the gradients in one flat buffer: every process gets the sum over all processes."""
    if num_processes() == 1:
        return
    weights = list(weights)
    flat = torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights])
    distributed.all_reduce(flat)
    for weight, summed in zip(weights, torch.split(flat, [w.numel() for w in weights]), strict=True):
        weight.grad = summed.view_as(weight)
