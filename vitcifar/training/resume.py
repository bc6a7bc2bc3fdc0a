"""Which run `--resume` means, whether it can go on, and the settings that it started with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitcifar.config import TrainConfig, upgrade_settings
from vitcifar.errors import ConfigError, TrackingError, TrainingError, listed, reason_of
from vitcifar.lock import check_free, holder
from vitcifar.progress import notify
from vitcifar.stores import find_run
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


def obstacle(run_id: str) -> str | None:
    """What the store says against going on with a run, or None."""
    try:
        run = find_run(run_id)
    except TrackingError as error:
        if run_id not in str(error):  # it is the store that cannot be used
            raise
        return "is not in this store, or was deleted"
    return f"has finished ({version_of(run)})" if run.info.status == "FINISHED" else None


def version_of(run: Any) -> str:
    """The version that a run has registered, in words."""
    return str(run.data.tags.get("version", "no version")).replace("/", " ")


def check_resumable(run_id: str, fingerprint: str) -> None:
    """Raise TrackingError when a run has finished, or has started with images of another fingerprint."""
    run = find_run(run_id)
    if run.info.status == "FINISHED":
        raise TrackingError(
            f"Run {run_id} has finished ({version_of(run)}): there is nothing to resume, omit --resume."
        )
    recorded = run.data.params.get("config.fingerprint", fingerprint)
    if recorded != fingerprint:
        raise TrackingError(
            f"The images are not those of run {run_id}: it started with fingerprint {recorded[:16]}…, they have "
            f"{fingerprint[:16]}…. Restore them, or omit --resume to start another run."
        )
