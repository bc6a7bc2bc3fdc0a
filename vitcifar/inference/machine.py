"""The machine that a latency was measured on: processor, cores, instruction sets, library versions."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

from vitcifar.inference.session import available_cores

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
PACKAGES = ("numpy", "onnxruntime", "torch")


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
    processor, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # only Linux has it
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            processor = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = value
    present = set(flags.split())
    return Machine(
        processor=processor,
        num_cores=available_cores(),
        flags=tuple(flag for flag in FLAGS if flag in present),
        system=f"{platform.system()} {platform.machine()}",
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
    )
