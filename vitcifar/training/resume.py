"""Which run `--resume` means, and the settings that it started with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitcifar.config import TrainConfig, upgrade_settings
from vitcifar.errors import ConfigError, TrainingError, listed, reason_of
from vitcifar.lock import check_free, holder
from vitcifar.progress import notify
from vitcifar.training.checkpoint import LAST

SETTINGS = "config.json"  # in the folder of a run


def resumed_config(folder: Path, options: Mapping[str, Any]) -> TrainConfig:
    """The config of the run in a folder; ConfigError when a given option differs, TrainingError when it is damaged."""
    path = folder / SETTINGS
    try:
        recorded = upgrade_settings(json.loads(path.read_text(encoding="utf-8")))
        config = TrainConfig(**{**recorded, "resume": folder.name, "output_dir": str(folder.parent)})
    except ConfigError as error:
        raise ConfigError(f"The settings in {path} are not valid: {error}") from error
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


def choose(output_dir: Path, resume: str, obstacle: Callable[[str], str | None]) -> Path:
    """The folder of the run to resume: the one that is named, or for `last` the newest that can go on, which it prints.

    `obstacle` has what the tracking store says against a run. Raises TrainingError when there is no such run, and
    TrackingError when a process still trains it.
    """
    checkpoints = sorted(output_dir.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
    folders = [path.parent for path in reversed(checkpoints)]
    names = [folder.name for folder in folders]
    if not names:
        raise TrainingError(f"There is no checkpoint under {output_dir}: start a run without --resume.")
    if resume != "last":
        if resume not in names:
            raise TrainingError(f"There is no checkpoint of run {resume!r}; there are: {', '.join(names[:5])}.")
        check_free(output_dir / resume)
        return output_dir / resume
    obstacles: list[str] = []
    for folder in folders:
        process = holder(folder)
        reason = f"is still training, in {process}" if process else obstacle(folder.name)
        if reason is None:
            passed = f" Newer ones cannot: {listed(obstacles, 3)}." if obstacles else ""
            notify(f"The newest run that can go on is {folder.name}.{passed}")
            return folder
        obstacles.append(f"{folder.name} {reason}")
    raise TrainingError(
        f"No run under {output_dir} can be resumed ({listed(obstacles, 3)}): start a run without --resume."
    )
