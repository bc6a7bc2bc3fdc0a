"""The presets with their measured result, and what tells a config from them: its changes, its command, its name."""

import dataclasses
import shlex
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcifar.config import TrainConfig, deciding_settings, groups
from vitcifar.errors import ConfigError

MAX_RUN_NAME = 120  # characters of a generated one

# cifar10: `vitcifar train`, the defaults: the head of torchvision's ViT-B/16 on 1,000 images. Never measured with the
#   pretrained weights, which could not be downloaded where this was built.
# digits: `vitcifar train --preset digits`, a small ViT from scratch. Test accuracy 0.968 with seed 0 and 0.956 with
#   seed 1, about 40 s in all (AMD EPYC, 2 cores, torch 2.13 on CPU); 0.96 to 0.99 over six seeds of an earlier version.
PRESETS: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "cifar10": {},
        "digits": {
            "data": "digits",
            "arch": "vit_tiny",
            "weights": "none",
            "train_layers": "all",
            "epochs": 12,
            "batch_size": 25,
            "optimizer": "adamw",
            "weight_decay": 0.1,
            "analysis": "full",
            "promote_to": "champion",
        },
    }
)


def resolve(preset: str, **given: Any) -> TrainConfig:
    """The preset's settings, overridden by those that were given. Raises ConfigError."""
    if preset not in PRESETS:
        raise ConfigError(f"There is no preset {preset!r}: choose one of {', '.join(PRESETS)}.")
    return TrainConfig(**{**PRESETS[preset], **given})


def changes(preset: str, config: TrainConfig) -> dict[str, Any]:
    """The settings of a config that differ from its preset, without `resume`."""
    base, own = dataclasses.asdict(resolve(preset)), dataclasses.asdict(config)
    return {name: value for name, value in own.items() if value != base[name] and name != "resume"}


def nearest_preset(config: TrainConfig) -> str:
    """The preset from which a config differs in the fewest settings."""
    return min(PRESETS, key=lambda preset: len(changes(preset, config)))


def train_command(preset: str, config: TrainConfig) -> str:
    """The command that trains with a config: the preset unless it is the default, and what differs from it."""
    words = [] if preset == next(iter(PRESETS)) else ["--preset", preset]
    for name, value in changes(preset, config).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(["vitcifar", "train", *words])


def run_name(config: TrainConfig) -> str:
    """What tells a run from others, for example "vit_b_16 head lr1e-3 s0": architecture, trainable layers, learning
    rate, seed, and the settings of the images and the weights that differ from the preset.
    """
    preset = nearest_preset(config)
    first = ("arch", "train_layers", "learning_rate", "seed")
    telling = {*deciding_settings(), *(name for name, group in groups().items() if group == "Data")} - {*first}
    if config.data == "folder":
        telling -= {"data"}  # the folder says it
    others = {name: value for name, value in changes(preset, config).items() if name in telling}
    words = [short(name, value) for name, value in ({name: getattr(config, name) for name in first} | others).items()]
    return " ".join(words)[:MAX_RUN_NAME]


def short(name: str, value: Any) -> str:
    """A setting as a word in the name of a run: lr1e-3, s0, adam, epochs=5."""
    if isinstance(value, float):
        digits, exponent = f"{value:.3e}".split("e")
        value = f"{float(digits):g}e{int(exponent)}" if 0 < abs(value) < 0.01 else f"{value:.4g}"
    if name == "train_layers" and value.isdecimal():
        return f"last {value}"
    if name == "data_dir":
        value = Path(value).absolute().name
    prefix = {"arch": "", "train_layers": "", "optimizer": "", "learning_rate": "lr", "seed": "s", "data_dir": "data="}
    return f"{prefix.get(name, f'{name}=')}{value}"
