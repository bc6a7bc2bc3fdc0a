"""The machine that a model runs on: how many cores it may use, and what its latency depends on."""

import contextlib
import ctypes
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
from pathlib import Path

import joblib

# What a machine is described by, besides its processor.
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
PACKAGES = ("numpy", "onnxruntime", "torch")
OPTIONAL = ("openvino",)


def available_cores() -> int:
    """Physical cores that this process may use, at least 1.

    An affinity mask or a cgroup quota (v1 or v2) limits them; within an affinity mask hyper-threads count as cores.
    """
    return int(joblib.cpu_count(only_physical_cores=True))


def return_free_memory() -> None:
    """Return the process's free memory to the operating system, which glibc does not always do by itself.

    After ViT-B/16 was opened, glibc kept 200 MB of free memory in about every second process.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def saturates_int8() -> bool:
    """Whether products of 8 bits saturate here: without the VNNI instructions, onnxruntime adds two of them in 16 bits.

    255 x 127 twice does not fit, 255 x 63 twice does. An x86 processor of which nothing is known counts as one without.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not {"avx512_vnni", "avx_vnni"} & {*this_machine().flags}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What determines the latency besides the load: latencies are comparable between equal machines only."""

    processor: str
    num_cores: int
    flags: tuple[str, ...]
    system: str
    versions: dict[str, str]

    @property
    def fingerprint(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def this_machine() -> Machine:
    """Describe the machine this runs on."""
    try:
        described = dict(re.findall(r"^(.+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    except OSError:  # only Linux has it
        described = {}
    present = (described.get("flags") or described.get("Features") or "").split()
    installed = [name for name in OPTIONAL if importlib.util.find_spec(name)]
    return Machine(
        processor=described.get("model name", "").strip() or platform.processor() or platform.machine(),
        num_cores=available_cores(),
        flags=tuple(flag for flag in FLAGS if flag in present),
        system=f"{platform.system()} {platform.machine()}",
        versions={name: importlib.metadata.version(name) for name in (*PACKAGES, *installed)},
    )
