"""Where the network trains: device, precision, and data-parallel processes, started by torchrun or by rank 0."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import joblib
import psutil
import torch
from torch import Tensor, distributed

from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_BF16_HIDDEN_SIZE = 256  # below it, on a CPU, conversions to bf16 cost more than the faster products save


def choose_device(name: str) -> torch.device:
    """auto = the GPU if there is one (under torchrun the process's own); raises ConfigError for a missing one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but no GPU is available: type --device cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def choose_precision(config: TrainConfig, device: torch.device, hidden_size: int) -> str:
    """auto = bf16 where the hardware supports it and the network is wide enough to gain, else fp32.

    The choice follows from the hardware, not from a timing, so that one seed gives one result on a machine.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU: type --precision bf16 or fp32.")
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if hidden_size >= MIN_BF16_HIDDEN_SIZE and has_bf16 else "fp32"


def peak_memory(device: torch.device) -> int:
    """The most memory, in bytes, that tensors took on the GPU, or on a CPU the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_hardware(config: TrainConfig) -> None:
    """Raise ConfigError for a device, precision or torch.compile that does not work here.

    Compiling takes seconds, which the network's own compilation then saves: the compiler and its headers are known.
    """
    device = choose_device(config.device)
    choose_precision(config, device, hidden_size=0)
    if config.compile == "off":
        return
    try:
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:  # of the compiler, of Triton, of the folder of compiled files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"compile is 'on', but torch.compile does not work here ({reason}): install a C++ compiler such as g++, or "
            "type --compile off."
        ) from error


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in `precision`; weights, sums and the loss stay fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


TIMEOUT = timedelta(minutes=10)  # how long the other processes wait for the slowest


LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


def launched_processes() -> int:
    """The number of processes that torchrun, or rank 0, has launched; 1 unless all of its variables are set."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in LAUNCHED) else 1


def is_worker() -> bool:
    """Whether this process only shares the training; rank 0 alone tracks, evaluates and releases."""
    return launched_processes() > 1 and int(os.environ["RANK"]) > 0


@contextmanager
def spawn_workers(num_processes: int) -> Iterator[None]:
    """Start num_processes - 1 workers that run this process's command, and make this process rank 0.

    Leaving the block waits for the workers; an exception kills them. Under torchrun it does nothing.
    """
    if num_processes == 1 or launched_processes() > 1:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    threads = max(1, joblib.cpu_count() // num_processes)  # of those that a cgroup leaves to this process
    workers = []
    try:
        for rank in map(str, range(1, num_processes)):
            own = {**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": str(threads)}
            workers.append(subprocess.Popen(sys.orig_argv, env={**os.environ, **own}, stdout=subprocess.DEVNULL))
        torch.set_num_threads(threads)
        os.environ.update({**shared, "RANK": "0", "LOCAL_RANK": "0"})
        yield
        for worker in workers:
            worker.wait()
    finally:
        for name in LAUNCHED:
            os.environ.pop(name, None)
        for worker in workers:
            worker.kill()


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of the environment (gloo on CPUs, nccl on GPUs); a single process does nothing."""
    if launched_processes() == 1 or distributed.is_initialized():
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
    values = [value]
    if num_processes() > 1:
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
