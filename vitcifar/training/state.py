"""How far training is: its stages, the progress that a checkpoint holds, and the weights of the best epoch."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcifar.errors import TrainingError
from vitcifar.training.checkpoint import CURE, Checkpoints


@dataclasses.dataclass(frozen=True)
class Stage:
    """A number of epochs in which the same layers train."""

    train_layers: str
    num_epochs: int


@dataclasses.dataclass
class TrainState:
    """Progress of training: completed epochs and steps, in total and in this stage, and the best epoch so far."""

    epoch: int = 0
    step: int = 0
    stage: int = 0
    stage_epoch: int = 0
    stage_step: int = 0
    best_epoch: int = 0
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def finished(self, stage: Stage, patience: int) -> bool:
        """Whether the stage's epochs are complete, or early stopping applies: none of the last `patience` was best."""
        num_epochs_since_best = min(self.stage_epoch, self.epoch - self.best_epoch)
        return self.stage_epoch >= stage.num_epochs or bool(patience and num_epochs_since_best >= patience)

    @classmethod
    def restore(cls, saved: Mapping[str, Any], path: Path) -> "TrainState":
        """The progress in a checkpoint; raises TrainingError unless it is one that training can have."""
        found = saved.get("state")
        if found == {}:
            return cls()
        counts = {field.name for field in dataclasses.fields(cls)} - {"best_metrics"}
        if not isinstance(found, dict) or found.keys() != counts | {"best_metrics"}:
            raise TrainingError(f"The checkpoint {path} does not say how far training was: {CURE}.")
        metrics = found["best_metrics"]
        possible = (
            all(type(found[name]) is int and found[name] >= 0 for name in counts)
            and found["stage_epoch"] <= found["epoch"] <= found["step"]
            and 0 < found["best_epoch"] <= found["epoch"]
            and isinstance(metrics, dict)
            and all(type(metrics.get(f"validation/{name}")) is float for name in ("accuracy", "loss"))
        )
        if not possible:
            raise TrainingError(f"The checkpoint {path} holds impossible progress of training: {CURE}.")
        return cls(**found)


def load_best(checkpoints: Checkpoints, state: TrainState, path: Path) -> dict[str, Any]:
    """The checkpoint of the best epoch; raises TrainingError for that of another epoch."""
    best = checkpoints.load(path)
    if best.get("epoch") != state.best_epoch or best.get("metrics") != state.best_metrics:
        raise TrainingError(
            f"{path} is of epoch {best.get('epoch')} and not of the run's best, {state.best_epoch}: put back the file "
            f"of that epoch, or {CURE}."
        )
    return best


def adopt_best(checkpoints: Checkpoints, state: TrainState, path: Path) -> None:
    """Check the best weights before training goes on; those of the next epoch count: a kill came before its end.

    That epoch is trained again, on a GPU not always with the same bits: without this, its weights could get lost.
    """
    best = checkpoints.load(path)
    if best.get("epoch") == state.epoch + 1 and isinstance(best.get("metrics"), dict):
        state.best_epoch, state.best_metrics = best["epoch"], best["metrics"]
    load_best(checkpoints, state, path)
