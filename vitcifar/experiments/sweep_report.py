"""How a sweep stands: its best trial, the command that trains with its settings, and all of it on the parent run."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitcifar import tracking
from vitcifar.config import TrainConfig, resolve

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna import Study
    from optuna.trial import FrozenTrial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The trial with the highest accuracy on validation; of equals, the one with the lowest loss."""

    number: int
    run_id: str
    accuracy: float
    settings: Mapping[str, Any]
    command: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tally:
    """How many trials came to which end, and the best of them."""

    run_id: str  # the parent's
    num_complete: int
    num_pruned: int
    num_killed: int
    best: Best | None
    failure: str  # of the last trial that could not be trained; "" = none

    @property
    def num_finished(self) -> int:
        return self.num_complete + self.num_pruned


def is_finished(trial: "FrozenTrial") -> bool:
    return trial.state.name in ("COMPLETE", "PRUNED")


def settings_of(trial: "FrozenTrial") -> dict[str, Any]:
    """What a trial trained with; of one that waits, what was proposed."""
    return trial.user_attrs.get("settings", trial.params)


def train_command(preset: str, config: TrainConfig) -> str:
    """What to type to train with a config: the preset, and every setting that differs from it."""
    words = ["vitcifar", "train", "--preset", preset]
    for name, value in dataclasses.asdict(resolve(preset)).items():
        chosen = getattr(config, name)
        if chosen != value:
            words += [f"--{name.replace('_', '-')}", str(chosen)]
    return shlex.join(words)


def count(study: "Study", config: TrainConfig, preset: str) -> Tally:
    """Read off a study how it stands."""
    trials = study.get_trials(deepcopy=False)
    ends = [trial.state.name for trial in trials]
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    best = None
    if complete:
        first = max(complete, key=lambda trial: (trial.value, -trial.user_attrs["loss"]))
        assert first.value is not None
        best = Best(
            number=first.number,
            run_id=first.user_attrs["run_id"],
            accuracy=first.value,
            settings=settings_of(first),
            command=train_command(preset, dataclasses.replace(config, **settings_of(first))),
        )
    failures = [trial.user_attrs["failure"] for trial in trials if "failure" in trial.user_attrs]
    return Tally(
        run_id=study.user_attrs["parent"],
        num_complete=ends.count("COMPLETE"),
        num_pruned=ends.count("PRUNED"),
        num_killed=ends.count("FAIL"),
        best=best,
        failure=failures[-1] if failures else "",
    )


def show(parent: tracking.Run, study: "Study", config: TrainConfig, preset: str, *, whole: bool = False) -> Tally:
    """Have the parent run say how its study stands; `whole` = also as JSON and as a figure."""
    tally = count(study, config, preset)
    trials = study.get_trials(deepcopy=False)
    parent.set_tags({"study": study.study_name, "mlflow.note.content": describe(tally, trials)})
    if tally.best:
        best = tally.best
        parent.set_tags({"best_trial": str(best.number), "best_run": best.run_id, "best_command": best.command})
        if not whole:
            parent.log(tally.num_finished, {"sweep/best_validation_accuracy": best.accuracy})
    if whole and tally.best:
        rows = [row(trial) for trial in trials]
        parent.log_json("sweep.json", {"tally": dataclasses.asdict(tally), "trials": rows})
        parent.log_figure("sweep/trials", draw(trials, tally.best), step=tally.num_finished)
    return tally


def row(trial: "FrozenTrial") -> dict[str, Any]:
    """A trial as JSON's own types."""
    told = {name: value for name, value in trial.user_attrs.items() if name not in ("worker", "settings")}
    epochs = {str(epoch): accuracy for epoch, accuracy in trial.intermediate_values.items()}
    return {"trial": trial.number, "end": end_of(trial), "settings": settings_of(trial), "accuracy": epochs, **told}


def end_of(trial: "FrozenTrial") -> str:
    """How a trial ended, in words."""
    if "failure" in trial.user_attrs:
        return "could not be trained"
    if trial.state.name == "PRUNED":
        return f"pruned after epoch {trial.last_step}"
    return {"COMPLETE": "complete", "FAIL": "killed", "RUNNING": "runs", "WAITING": "waits"}[trial.state.name]


def describe(tally: Tally, trials: Sequence["FrozenTrial"]) -> str:
    """Markdown for the parent's page in MLflow."""
    lines = []
    if tally.best:
        settings = ", ".join(f"{name} {value}" for name, value in tally.best.settings.items())
        lines += [
            f"Best of {tally.num_finished} trials: **trial {tally.best.number}** (run {tally.best.run_id}) with "
            f"{settings}. Its accuracy on validation, on which it was chosen, is {tally.best.accuracy:.4f}: a choice "
            "among many flatters the chosen one, and no test image was looked at. To train, test and release:",
            "",
            f"    {tally.best.command}",
            "",
        ]
    lines += ["| trial | end | validation accuracy | settings | run |", "|---|---|---|---|---|"]
    for trial in trials:
        accuracy = "" if trial.value is None else f"{trial.value:.4f}"
        settings = ", ".join(f"{name} {value}" for name, value in settings_of(trial).items())
        run_id = trial.user_attrs.get("run_id", "")
        lines.append(f"| {trial.number} | {end_of(trial)} | {accuracy} | {settings} | {run_id} |")
    return "\n".join(lines)


def draw(trials: Sequence["FrozenTrial"], best: Best) -> "Figure":
    """Accuracy on validation against each setting that was searched; complete trials, pruned ones, and the best."""
    from optuna.distributions import CategoricalDistribution

    from vitcifar.report.style import BLUE, MUTED, RED, dress, heading, new_figure

    names = list(best.settings)
    figure = new_figure(1.2 + 2.6 * len(names), 3.6)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    shown = sorted(
        (trial for trial in trials if trial.value is not None), key=lambda trial: trial.number == best.number
    )
    for axes, name in zip(panels, names, strict=True):
        for trial in shown:
            complete = trial.state.name == "COMPLETE"
            colour = RED if trial.number == best.number else BLUE if complete else MUTED
            value = settings_of(trial)[name]
            choice = isinstance(trial.distributions[name], CategoricalDistribution)
            mark = "o" if complete else "x"
            axes.plot(str(value) if choice else value, trial.value, mark, color=colour, clip_on=False)
        searched = shown[0].distributions[name]
        if getattr(searched, "log", False):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter("")
        if isinstance(searched, CategoricalDistribution):
            axes.margins(x=0.3)
        else:
            axes.set_xlim(searched.low, searched.high)  # type: ignore[attr-defined]
        dress(axes)
        axes.tick_params(which="minor", length=0)
        axes.set_xlabel(name)
    panels[0].set_ylabel("validation accuracy")
    heading(figure, "Trials", f"orange: the best, trial {best.number}; crosses: pruned, at their last epoch")
    return figure
