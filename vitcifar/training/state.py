"""How far training is: its stages, the progress that a checkpoint holds, and the weights of the best epoch."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcifar import signals
from vitcifar.errors import TrainingError, VitCifarError
from vitcifar.training.checkpoint import CURE, LAST, Checkpoints

if TYPE_CHECKING:
    from vitcifar.training.stages import ActiveStage, Setup


@dataclasses.dataclass(frozen=True)
class Stage:
    """A number of epochs in which the same layers train."""

    train_layers: str
    num_epochs: int


@dataclasses.dataclass
class TrainState:
    """Progress of training: completed epochs and steps, in total and in this stage, and the best epoch so far.

    The steps of the epoch that is not complete have a sum of losses and a number of correct predictions, over images.
    """

    epoch: int = 0
    step: int = 0
    stage: int = 0
    stage_epoch: int = 0
    stage_step: int = 0
    best_epoch: int = 0
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    loss_sum: float = 0.0
    num_correct: float = 0.0
    changing = False  # not saved: whether weights and progress are of different steps at the moment

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """A block that changes weights and progress together: a signal waits for its end."""
        with signals.held():
            self.changing = True
            yield
            self.changing = False

    def finished(self, stage: Stage, patience: int) -> bool:
        """Whether the stage's epochs are complete, or early stopping applies: none of the last `patience` was best."""
        num_epochs_since_best = min(self.stage_epoch, self.epoch - self.best_epoch)
        return self.stage_epoch >= stage.num_epochs or bool(patience and num_epochs_since_best >= patience)

    @classmethod
    def restore(cls, saved: Mapping[str, Any], path: Path, num_batches: int) -> "TrainState":
        """The progress in a checkpoint; raises TrainingError unless it is one that training can have, with
        `num_batches` steps in an epoch."""
        found = saved.get("state")
        if found == {}:
            return cls()
        names, sums = {field.name for field in dataclasses.fields(cls)}, {"loss_sum", "num_correct"}
        counts = names - sums - {"best_metrics"}
        if not isinstance(found, dict) or found.keys() | sums != names:  # an earlier vitcifar saved no sums
            raise TrainingError(f"The checkpoint {path} does not say how far training was: {CURE}.")
        metrics = found["best_metrics"]
        possible = (
            all(type(found[name]) is int and found[name] >= 0 for name in counts)
            and all(type(value := found.get(name, 0.0)) is float and math.isfinite(value) for name in sums)
            and found["stage_epoch"] <= found["epoch"]
            and all(0 <= found[f"{of}step"] - found[f"{of}epoch"] * num_batches <= num_batches for of in ("", "stage_"))
            and min(1, found["epoch"]) <= found["best_epoch"] <= found["epoch"]
            and isinstance(metrics, dict)
            and all(type(metrics.get(f"validation/{name}")) is float for name in ("accuracy", "loss") if found["epoch"])
        )
        if not possible:
            raise TrainingError(f"The checkpoint {path} holds impossible progress of training: {CURE}.")
        return cls(**found)


def save_last(setup: "Setup", stage: "ActiveStage", state: TrainState) -> None:
    """Write the checkpoint that training goes on from."""
    weights = {**setup.checkpoints.weights, **(stage.ema.replaced if stage.ema else {})}
    setup.checkpoints.save(
        LAST,
        state=dataclasses.asdict(state),
        weights={name: weight.detach() for name, weight in weights.items()},
        optimizer=stage.optimizer.state_dict(),
        scaler=stage.scaler.state_dict(),
        ema=stage.ema.state_dict() if stage.ema else {},
    )


@contextlib.contextmanager
def saved_when_stopped(setup: "Setup", stage: "ActiveStage", state: TrainState) -> Iterator[None]:
    """At a signal, write a checkpoint with the completed steps of an epoch; a second signal interrupts that.

    Training processes have the same weights after every step: rank 0 need not wait for the others.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not state.changing and state.step > state.epoch * setup.num_batches:
            told = f"Step {state.step} is saved: vitcifar train --resume last goes on from there."
            with signals.unhurried(), contextlib.suppress(OSError):  # the terminal may be gone
                try:
                    setup.log(state.step, {})  # writes what it holds back: the resumed run does not repeat these steps
                    save_last(setup, stage, state)
                except (VitCifarError, OSError) as error:
                    told = str(error)
                setup.notify(told)
        raise


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
