"""What a checkpoint belongs to: it is only gone on from with the settings, pictures and weights it was made with."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vitcifar.config import TrainConfig
from vitcifar.data.fingerprint import fingerprint
from vitcifar.data.pictures import Pictures
from vitcifar.errors import TrainingError
from vitcifar.training import checkpoint
from vitcifar.training.network import Classifier

# The settings that decide which weights come out. The others (folders, names, workers, the release) may differ.
DECISIVE = (
    *("seed", "arch", "weights", "image_size", "train_layers", "epochs", "batch_size", "learning_rate", "schedule"),
    *("warmup_epochs", "optimizer", "weight_decay", "layer_decay", "clip_norm", "label_smoothing", "augmentation"),
    *("mixup", "cutmix", "ema_decay", "patience", "head_epochs", "lora_rank", "precision", "compile"),
    *("accumulation_steps", "num_views", "cache_memory", "device"),
)


def identify(network: Classifier, trained: Iterable[str], train: Pictures, config: TrainConfig) -> dict[str, Any]:
    """The settings, the classes, the pictures and the weights that no stage trains, the last two as hashes."""
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
        "pictures": fingerprint(train),
        "frozen weights": frozen.hexdigest(),
    }


def load_matching(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint that belongs to this identity; raises TrainingError with what differs."""
    state = checkpoint.load(path)
    was = state.get("identity", {})
    for name, value in identity["settings"].items():
        got = was.get("settings", {}).get(name)
        if got != value:
            raise TrainingError(f"The checkpoint {path} was made with {name} {got!r}, not {value!r}: type that value.")
    for name in ("classes", "pictures", "frozen weights"):
        if was.get(name) != identity[name]:
            raise TrainingError(f"The checkpoint {path} was made with other {name}: train without --resume.")
    return state
