"""Checkpoints: written atomically, and resumed only with the settings, images and weights they were made with."""

import hashlib
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset, fingerprint
from vitcifar.errors import TrainingError
from vitcifar.model.network import Classifier
from vitcifar.training import checkpoint

LAST = "last.pt"  # the state after the last whole epoch
BEST = "best.pt"  # the weights of the best epoch


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; killed at any moment, `path` holds the whole old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # a full disk reaches torch.save as a RuntimeError
        beside.unlink(missing_ok=True)
        raise TrainingError(f"The checkpoint {path} could not be written ({error}): make room on the disk.") from error
    os.replace(beside, path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code from it; raises TrainingError when it is missing or broken."""
    if not path.is_file():
        raise TrainingError(f"There is no checkpoint {path}: train without --resume.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile, ValueError, OSError) as error:
        raise TrainingError(f"The checkpoint {path} cannot be read: train without --resume.") from error


# The settings that decide which weights come out. The others (folders, names, workers, the release) may differ.
DECISIVE = (
    *("seed", "arch", "weights", "image_size", "train_layers", "epochs", "batch_size", "learning_rate", "schedule"),
    *("warmup_epochs", "optimizer", "weight_decay", "layer_decay", "clip_norm", "label_smoothing", "augmentation"),
    *("mixup", "cutmix", "ema_decay", "patience", "head_epochs", "lora_rank", "precision", "compile"),
    *("accumulation_steps", "num_views", "cache_memory", "device"),
)


def identity_of(
    network: Classifier, trained: Iterable[str], train: ImageDataset, config: TrainConfig
) -> dict[str, Any]:
    """The settings, the classes, the images and the weights that no stage trains, the last two as hashes."""
    settings = {name: getattr(config, name) for name in DECISIVE}
    trained = set(trained)
    frozen = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        if name not in trained and name != "temperature":
            frozen.update(name.encode())
            frozen.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {
        "settings": settings,
        "classes": list(network.class_names),
        "images": fingerprint(train),
        "frozen weights": frozen.hexdigest(),
    }


def load_compatible(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint that belongs to this identity; raises TrainingError with what differs."""
    state = checkpoint.load(path)
    was = state.get("identity", {})
    for name, value in identity["settings"].items():
        got = was.get("settings", {}).get(name)
        if got != value:
            raise TrainingError(f"The checkpoint {path} was made with {name} {got!r}, not {value!r}: type that value.")
    for name in ("classes", "images", "frozen weights"):
        if was.get(name) != identity[name]:
            raise TrainingError(f"The checkpoint {path} was made with other {name}: train without --resume.")
    return state
