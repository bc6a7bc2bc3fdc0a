"""What decides the last bits of a training besides config, code and images: threads, switches of torch, the machine.

Sums in another order round differently: one more thread or another instruction set gives other weights.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from vitcifar.inference.machine import this_machine

Switch = tuple[Callable[[], Any], Callable[[Any], object]]  # reads it, sets it
SWITCHES: dict[str, Switch] = {
    "num_threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic_algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    **{
        f"cudnn_{name}": (partial(getattr, torch.backends.cudnn, name), partial(setattr, torch.backends.cudnn, name))
        for name in ("deterministic", "benchmark", "allow_tf32")
    },
}
# Read by a library when it starts, so that they cannot be set for a reproduction.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)


def numerics() -> dict[str, Any]:
    """The present threads and switches of torch, and the machine."""
    machine = this_machine()
    return {
        **{name: read() for name, (read, _) in SWITCHES.items()},
        "num_interop_threads": torch.get_num_interop_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": machine.processor,
        "flags": list(machine.flags),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


@contextlib.contextmanager
def recorded_switches(recorded: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Inside the block the threads and switches are as `recorded`; yields those that were not, with that value."""
    before = {name: read() for name, (read, _) in SWITCHES.items()}
    changed = {name: recorded[name] for name in SWITCHES if recorded.get(name, before[name]) != before[name]}
    try:
        for name, value in changed.items():
            SWITCHES[name][1](value)
        yield changed
    finally:
        for name in changed:
            SWITCHES[name][1](before[name])
