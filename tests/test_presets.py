"""The presets, and the name and the command that tell a config from them."""

import pytest

from vitcifar.errors import ConfigError
from vitcifar.presets import PRESETS, nearest_preset, resolve, run_name, train_command


def test_a_preset_is_overridden_by_what_is_given():
    assert resolve("digits").arch == PRESETS["digits"]["arch"]
    assert resolve("digits", epochs=3).epochs == 3
    with pytest.raises(ConfigError, match="choose one of cifar10, digits"):
        resolve("imagenet")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (resolve("cifar10"), "vit_b_16 head lr1e-3 s0"),
        (resolve("digits"), "vit_tiny all lr1e-3 s0"),
        (resolve("cifar10", learning_rate=1.23e-5, train_layers="2", seed=4), "vit_b_16 last 2 lr1.23e-5 s4"),
        (resolve("digits", epochs=5, label_smoothing=0.1), "vit_tiny all lr1e-3 s0 epochs=5 label_smoothing=0.1"),
        (resolve("cifar10", data="folder", data_dir="/x/birds"), "vit_b_16 head lr1e-3 s0 data=birds"),
        (resolve("cifar10", output_dir="elsewhere", analysis="none"), "vit_b_16 head lr1e-3 s0"),
    ],
)
def test_the_name_of_a_run_says_what_differs(config, name):
    assert run_name(config) == name


def test_the_command_of_a_config_has_the_settings_that_differ_from_the_nearest_preset():
    config = resolve("digits", epochs=5, resume="last")
    assert train_command(nearest_preset(config), config) == "vitcifar train --preset digits --epochs 5"
