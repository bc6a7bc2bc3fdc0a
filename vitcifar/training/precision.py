"""Where the network runs, and in which number format."""

import torch

from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WIDE_ENOUGH = 256  # hidden size from which bf16 pays on a CPU; below it the conversions cost more than they save


def choose_device(name: str) -> torch.device:
    """auto = a GPU when there is one, the process's own under torchrun; raises ConfigError for one not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but no GPU can be used here: type --device cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def choose_precision(config: TrainConfig, device: torch.device, hidden_size: int) -> str:
    """auto = bf16 where the processor or GPU calculates in it and the network is wide enough to gain, else fp32.

    It is known rather than measured, so that one seed gives the same weights on every run of a machine.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 is for a GPU: type --precision bf16 or fp32.")
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if hidden_size >= WIDE_ENOUGH and cpu_calculates_in_bf16() else "fp32"


def cpu_calculates_in_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in `precision`; weights, sums and the loss stay fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
