"""The device that the network runs on, and its number format."""

import torch

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
    return "bf16" if hidden_size >= MIN_BF16_HIDDEN_SIZE and cpu_supports_bf16() else "fp32"


def cpu_supports_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in `precision`; weights, sums and the loss stay fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
