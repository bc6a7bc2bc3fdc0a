"""Checkpoints that are whole or not there: written beside, flushed to the disk, then renamed."""

import os
import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from vitcifar.errors import TrainingError

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
