"""Several processes that train one network together, started by torchrun or by the first of them; else just one."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

TIMEOUT = timedelta(minutes=10)  # for one step of the slowest process


def is_worker() -> bool:
    """Whether this process only helps another, which tracks, evaluates and releases."""
    return int(os.environ.get("RANK", "0")) > 0


@contextmanager
def spawn_workers(num_processes: int) -> Iterator[None]:
    """Make this process the first of several: the others run the same command and end with this block."""
    if num_processes == 1 or "WORLD_SIZE" in os.environ:
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    started = []
    try:
        for rank in range(1, num_processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(threads)}
            environment = {**os.environ, **shared, **own}
            started.append(subprocess.Popen(sys.orig_argv, env=environment, stdout=subprocess.DEVNULL))
        torch.set_num_threads(threads)
        os.environ.update({**shared, "RANK": "0", "LOCAL_RANK": "0"})
        yield
        for process in started:
            process.wait()
    finally:
        for name in (*shared, "RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)
        for process in started:
            process.kill()


def broadcast(value: str) -> str:
    """What the first process says, in all of them."""
    if num_processes() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started (gloo on the CPU, nccl on GPUs); alone, do nothing."""
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


def barrier() -> None:
    if num_processes() > 1:
        distributed.barrier()
