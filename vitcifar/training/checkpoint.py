"""Checkpoints: written atomically, resumed only with the settings, images and initial weights of their run."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcifar.config import TrainConfig, deciding_settings, upgrade_settings
from vitcifar.data.dataset import ImageDataset, fingerprint
from vitcifar.errors import ConfigError, TrainingError, reason_of
from vitcifar.model.network import Classifier
from vitcifar.model.tensor_file import load_file
from vitcifar.training.distributed import rank

LAST = "last.pt"  # the state after the last complete epoch
BEST = "best.pt"  # the weights of the best epoch


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, in rank 0 alone; killed at any moment, `path` holds the complete old or new one."""
    if rank() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        raise TrainingError(f"The checkpoint {path} could not be written ({error}): free some disk space.") from error
    os.replace(partial, path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code from it; raises TrainingError when it is missing or broken."""
    if not path.is_file():
        raise TrainingError(f"There is no checkpoint {path}: train without --resume.")
    state = load_file(path, cure="train without --resume")
    if not isinstance(state, dict):
        raise TrainingError(f"{path} holds a {type(state).__name__}, not a checkpoint: train without --resume.")
    return state


def identity_of(
    network: Classifier, trained: Iterable[str], train: ImageDataset, config: TrainConfig
) -> dict[str, Any]:
    """What a resumed run must share: settings, classes, and hashes of the images and of the weights not `trained`."""
    trained = set(trained)
    frozen = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        if name not in trained and name != "temperature":
            frozen.update(name.encode())
            frozen.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {
        "settings": {name: getattr(config, name) for name in deciding_settings()},
        "classes": list(network.class_names),
        "images": fingerprint(train),
        "frozen weights": frozen.hexdigest(),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of a run. They hold only the weights that training changes: the frozen ones are in its start."""

    folder: Path
    identity: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    def save(self, name: str, **state: Any) -> None:
        """Write identity, weights and `state`; `weights` in `state` replaces the run's."""
        weights = {key: weight.detach() for key, weight in self.weights.items()}
        save({"identity": self.identity, "weights": weights, **state}, self.folder / name)

    def load(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint of the same identity; raises TrainingError with the first difference."""
        state = load(path)
        saved = state.get("identity")
        if not isinstance(saved, dict) or "settings" not in saved or "weights" not in state:
            raise TrainingError(f"{path} is not a checkpoint of vitcifar: train without --resume.")
        for name, value in self.identity["settings"].items():
            was = saved["settings"].get(name)
            if was != value:
                option = name.replace("_", "-")
                raise TrainingError(
                    f"The checkpoint {path} was made with {name} {was!r}, not {value!r}: type --{option} {was}."
                )
        for name in ("classes", "images", "frozen weights"):
            if saved.get(name) != self.identity[name]:
                raise TrainingError(f"The checkpoint {path} was made with other {name}: train without --resume.")
        return state


def resumed_config(options: Mapping[str, Any]) -> TrainConfig:
    """The config of the run to resume, for `last` the one with the newest checkpoint.

    Raises TrainingError when there is no such run, ConfigError when a given option differs from its config.
    """
    output_dir, resume = Path(options.get("output_dir", "runs")), options["resume"]
    checkpoints = sorted(output_dir.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
    names = [path.parent.name for path in checkpoints]
    if not names:
        raise TrainingError(f"There is no checkpoint under {output_dir}: start a run without --resume.")
    if resume != "last" and resume not in names:
        raise TrainingError(f"There is no checkpoint of run {resume!r}; there are: {', '.join(names[-5:])}.")
    folder = output_dir / (names[-1] if resume == "last" else resume)
    path = folder / "config.json"
    try:
        recorded = upgrade_settings(json.loads(path.read_text(encoding="utf-8")))
        config = TrainConfig(**{**recorded, "resume": folder.name, "output_dir": str(folder.parent)})
    except ConfigError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise TrainingError(
            f"The settings in {path} cannot be read ({reason_of(error)}): omit resume to start another run."
        ) from error
    for name, value in options.items():
        if name not in ("resume", "output_dir") and value != (was := getattr(config, name)):
            raise ConfigError(
                f"Run {folder.name} was started with {name} {was}, not {value}: "
                f"omit {name} to resume the run, or omit resume to start another."
            )
    return config
