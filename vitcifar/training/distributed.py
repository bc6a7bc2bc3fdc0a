"""Where the network trains: device, precision, and data-parallel processes, started by torchrun or by rank 0."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import joblib
import psutil
import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import TCPStore
from torch.distributed.rendezvous import rendezvous

from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError, TrainingError

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


TIMEOUT = timedelta(seconds=50)  # how long processes wait in a step for the slowest
START = timedelta(minutes=10)  # and at the start, while it reads its images
GRACE = 3.0  # seconds in which rank 0, if it lives, ends the others and says why


LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


def launched_processes() -> int:
    """The number of processes that torchrun, or rank 0, has launched; 1 unless all of its variables are set."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in LAUNCHED) else 1


def is_worker() -> bool:
    """Whether this process only shares the training; rank 0 alone tracks, evaluates and releases."""
    return launched_processes() > 1 and int(os.environ["RANK"]) > 0


class LostProcess(TrainingError):
    """Another training process has ended or does not answer."""


_workers: list[subprocess.Popen[bytes]] = []  # that this process has started


@contextmanager
def spawn_workers(num_processes: int) -> Iterator[None]:
    """Start num_processes - 1 workers that run this process's command, and make this process rank 0.

    Leaving the block waits for the workers; an exception kills them. Under torchrun it does nothing. Raises
    TrainingError with the cause when a worker ends too early or hangs.
    """
    if num_processes == 1 or launched_processes() > 1:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    threads = max(1, joblib.cpu_count() // num_processes)  # of those that a cgroup leaves to this process
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "start_new_session": os.name == "posix"}  # no Ctrl-C
    try:
        for rank in map(str, range(1, num_processes)):
            own = {**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": str(threads)}
            _workers.append(subprocess.Popen(sys.orig_argv, env={**os.environ, **own}, **options))
        torch.set_num_threads(threads)
        os.environ.update({**shared, "RANK": "0", "LOCAL_RANK": "0"})
        yield
        for worker in _workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(TIMEOUT.total_seconds())
    except LostProcess as error:
        raise TrainingError(why_lost(str(error))) from error
    finally:
        for name in LAUNCHED:
            os.environ.pop(name, None)
        for worker in _workers:
            worker.kill()
            worker.wait()
        _workers.clear()


def why_lost(otherwise: str) -> str:
    """What has become of the first worker that has ended by an error, or `otherwise`."""
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        for number, worker in enumerate(_workers, start=1):
            if code := worker.poll():
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                cure = "free memory if it ran out" if code < 0 else "see its message above"
                return f"Training process {number} {how}: {cure}, then type vitcifar train --resume last."
        time.sleep(0.05)
    return otherwise


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of the environment (gloo on CPUs, nccl on GPUs); a single process does nothing."""
    if launched_processes() == 1 or distributed.is_initialized():
        yield
        return
    rank, size = int(os.environ["RANK"]), launched_processes()
    if rank:
        threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with together():
        store = meet(rank, size)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def meet(rank: int, size: int) -> Any:
    """Wait until all processes are there, or one that this process started has ended; returns their common store."""
    if _workers:  # torch's own way waits in C++, also for those that have died
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store: Any = TCPStore(*address, size, is_master=True, timeout=START, wait_for_workers=False)
    else:
        store, _, _ = next(rendezvous("env://", timeout=START))
    store.set(f"joined/{rank}", "yes")
    deadline = time.monotonic() + START.total_seconds()
    while not store.check([f"joined/{other}" for other in range(size)]):
        if time.monotonic() > deadline or any(worker.poll() for worker in _workers):
            raise RuntimeError("Timed out")
        time.sleep(0.02)
    return store


def end_with_parent(parent: int) -> None:
    """End this process when its parent has ended, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextmanager
def together() -> Iterator[None]:
    """Turn an error of gloo or nccl into LostProcess; in a worker, after rank 0 had time to say why and to end it."""
    try:
        yield
    except RuntimeError as error:
        if is_worker():
            time.sleep(GRACE)
        slow = re.search(r"[Tt]imed? ?out", str(error))
        how = f"does not answer within {TIMEOUT.total_seconds():.0f} s" if slow else "has ended"
        raise LostProcess(
            f"Another training process {how}: see its messages, then type vitcifar train --resume last."
        ) from error


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def num_processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def broadcast(value: str) -> str:
    """Broadcast a string from rank 0."""
    values = [value]
    if num_processes() > 1:
        with together():
            distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def barrier() -> None:
    """Wait until every process is here."""
    if num_processes() > 1:
        with together():
            distributed.barrier()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """All-reduce a tensor in place: the sum over all processes."""
    if num_processes() > 1:
        with together():
            distributed.all_reduce(tensor)
    return tensor


def sum_gradients(weights: Iterable[Tensor]) -> None:
    """All-reduce the gradients in one flat buffer: every process gets the sum over all processes."""
    if num_processes() == 1:
        return
    weights = list(weights)
    flat = torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights])
    with together():
        distributed.all_reduce(flat)
    for weight, summed in zip(weights, torch.split(flat, [w.numel() for w in weights]), strict=True):
        weight.grad = summed.view_as(weight)
