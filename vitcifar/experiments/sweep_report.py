"""The parent run of a sweep: the table of its trials, the best one, and the command that trains with its settings."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import jinja2
import mlflow
from matplotlib.figure import Figure

from vitcifar import pipeline, tracking
from vitcifar.errors import TrackingError
from vitcifar.presets import train_command
from vitcifar.report.style import BLUE, MUTED, RED, dress, heading, new_figure

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from vitcifar.experiments.sweep import SweepPlan

PAGE = Path(__file__).with_name("sweep.md.j2")  # of the parent in MLflow


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The trial with the highest validation accuracy; of equals, the one with the lowest loss."""

    number: int
    run_id: str
    accuracy: float
    settings: Mapping[str, Any]
    command: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The number of trials in each state, and the best trial."""

    run_id: str  # the parent's
    num_complete: int
    num_pruned: int
    num_failed: int
    best: BestTrial | None
    failure: str  # of the last trial that could not be trained ("" = none)


def open_parent(study: "Study", plan: "SweepPlan") -> None:
    """Create the parent run of a new sweep, or take the one that `mlflow run` created, and record it in the study.

    Raises TrackingError when the sweep is resumed and its parent run is missing.
    """
    parent_id = study.user_attrs.get("parent")
    if parent_id is None:
        with pipeline.start_run(plan.config, "sweep", name=plan.name, shared=True) as parent:
            parent.log_params(study.user_attrs["recipe"])
            study.set_user_attr("parent", parent.run_id)
        return
    client = mlflow.MlflowClient()
    try:
        stage = client.get_run(parent_id).info.lifecycle_stage
    except mlflow.MlflowException:
        stage = "missing"
    if stage != "active":
        raise TrackingError(
            f"The sweep {study.study_name!r} belongs to run {parent_id}, which is {stage} in this tracking store: "
            "name its store with --tracking-uri, or start another sweep with --name."
        )
    if project_run := os.environ.get("MLFLOW_RUN_ID"):
        client.set_tag(project_run, "continues_in", parent_id)


@contextlib.contextmanager
def parent_run(study: "Study", plan: "SweepPlan", lock: filelock.BaseFileLock) -> Iterator[tracking.Run]:
    """Continue the parent run. It stays RUNNING while a trial of another process is running, which then ends it."""
    from optuna.storages import fail_stale_trials

    run_id = study.user_attrs["parent"]
    try:
        with pipeline.start_run(plan.config, "sweep", run_id=run_id, shared=True) as parent:
            try:
                yield parent
            finally:
                lock.acquire()  # no process may end the run between the check below and the update
    finally:
        with contextlib.suppress(Exception):  # an error that is being raised says more
            fail_stale_trials(study)
            if trials_in(study, "RUNNING"):
                mlflow.MlflowClient().update_run(run_id, status="RUNNING")
        lock.release()


def trials_in(study: "Study", *states: str) -> list["FrozenTrial"]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in states]


def settings_of(trial: "FrozenTrial") -> dict[str, Any]:
    """The settings that a trial trained with; of a waiting one, those that were proposed."""
    return {**trial.params, **trial.user_attrs.get("settings", {})}


def summarize(study: "Study", plan: "SweepPlan") -> SweepResult:
    """The state of a sweep as its storage has it now."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state.name for trial in trials]
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    best = None
    if complete:
        first = max(complete, key=lambda trial: (trial.value, -trial.user_attrs["loss"]))
        assert first.value is not None
        best = BestTrial(
            number=first.number,
            run_id=first.user_attrs["run_id"],
            accuracy=first.value,
            settings=settings_of(first),
            command=train_command(plan.preset, dataclasses.replace(plan.config, **settings_of(first))),
        )
    failures = [trial.user_attrs["failure"] for trial in trials if "failure" in trial.user_attrs]
    return SweepResult(
        run_id=study.user_attrs["parent"],
        num_complete=states.count("COMPLETE"),
        num_pruned=states.count("PRUNED"),
        num_failed=states.count("FAIL"),
        best=best,
        failure=failures[-1] if failures else "",
    )


def log_result(parent: tracking.Run, study: "Study", plan: "SweepPlan", *, files: bool = False) -> SweepResult:
    """Write the trials and the best of them into the parent run's tags and, with `files`, into JSON and a figure."""
    result, trials = summarize(study, plan), study.get_trials(deepcopy=False)
    page = jinja2.Template(PAGE.read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True)
    text = page.render(result=result, trials=trials, state=trial_state, settings_of=settings_of)
    tags = {"sweep": study.study_name}
    if best := result.best:
        tags |= {"best_trial": str(best.number), "best_run": best.run_id, "best_command": best.command}
    parent.set_tags(tags)
    parent.note(text)
    if best and files:
        rows = [
            {
                **trial.user_attrs,
                "trial": trial.number,
                "state": trial_state(trial),
                "settings": settings_of(trial),
                "accuracy": {str(epoch): accuracy for epoch, accuracy in trial.intermediate_values.items()},
            }
            for trial in trials
        ]
        parent.log_json("sweep.json", {"result": dataclasses.asdict(result), "trials": rows})
        parent.log_figure("sweep/trials", plot_trials(trials, best), step=len(trials))
    return result


def trial_state(trial: "FrozenTrial") -> str:
    if "failure" in trial.user_attrs:
        return "could not be trained"
    if trial.state.name == "PRUNED":
        return f"pruned after epoch {trial.last_step}"
    return {"COMPLETE": "complete", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}[trial.state.name]


def plot_trials(trials: Sequence["FrozenTrial"], best: BestTrial) -> Figure:
    """Validation accuracy against each setting of the search space: complete trials, pruned ones, and the best."""
    from optuna.distributions import CategoricalDistribution

    figure = new_figure(1.2 + 2.6 * len(best.settings), 3.6)
    panels = figure.subplots(1, len(best.settings), sharey=True, squeeze=False)[0]
    with_value = sorted((trial for trial in trials if trial.value is not None), key=lambda t: t.number == best.number)
    for axes, name in zip(panels, best.settings, strict=True):
        distribution = with_value[0].distributions[name]
        categorical = isinstance(distribution, CategoricalDistribution)
        for trial in with_value:
            complete = trial.state.name == "COMPLETE"
            colour = RED if trial.number == best.number else BLUE if complete else MUTED
            value = settings_of(trial)[name]
            axes.plot(str(value) if categorical else value, trial.value, "o" if complete else "x", color=colour)
        if getattr(distribution, "log", False):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter("")
        if categorical:
            axes.margins(x=0.3)
        dress(axes)
        axes.tick_params(which="minor", length=0)
        axes.set_xlabel(name)
    panels[0].set_ylabel("validation accuracy")
    heading(figure, "Trials", f"orange: the best, trial {best.number}; crosses: pruned, at their last epoch")
    return figure
