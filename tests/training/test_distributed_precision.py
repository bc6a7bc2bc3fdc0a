"""Number formats."""

import pytest
import torch
from support.training import losses, settings

from vitcifar.errors import ConfigError
from vitcifar.training.distributed import choose_precision

CPU = torch.device("cpu")


def test_bf16_trains_to_nearly_the_same_loss(tmp_path):
    full = losses(tmp_path / "fp32", precision="fp32")
    half = losses(tmp_path / "bf16", precision="bf16")
    assert full != half
    assert half["validation/loss", 9] == pytest.approx(full["validation/loss", 9], rel=0.1)


def test_auto_is_fp32_for_narrow_networks_and_fp16_needs_a_gpu():
    assert choose_precision(settings(), CPU, hidden_size=96) == "fp32"
    assert choose_precision(settings(precision="bf16"), CPU, hidden_size=96) == "bf16"
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose_precision(settings(precision="fp16"), CPU, hidden_size=768)
