"""Number formats."""

import pytest
import torch
from support.training import losses, settings

from vitcifar.errors import ConfigError
from vitcifar.training.distributed import check_hardware, choose_precision

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


def test_a_torch_compile_that_cannot_work_here_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    check_hardware(settings(compile="off"))
    compiler = torch._inductor.config.patch("cpp.cxx", ("/bin/false",))
    with compiler, pytest.raises(ConfigError, match=r"No working C\+\+ compiler.*or type --compile off") as caught:
        check_hardware(settings(compile="on"))
    assert "\n" not in str(caught.value)


def test_an_error_of_torch_compile_without_a_text_is_named(monkeypatch):
    def fail(function):
        raise AssertionError

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(ConfigError, match=r"does not work here \(AssertionError\)"):
        check_hardware(settings(compile="on"))
