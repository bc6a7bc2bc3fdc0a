"""What is known of a sweep lies in its storage: this opens it, and clears up after processes that were killed."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcifar.config import TrainConfig, groups
from vitcifar.data.splits import Splits
from vitcifar.errors import ConfigError, TrackingError
from vitcifar.experiments.search_space import Dimension
from vitcifar.experiments.workers import Crew

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

# Settings that must be the same when a sweep goes on: the others change no trial.
DECISIVE = tuple(
    name
    for name, heading in groups().items()
    if heading in ("Data", "Model", "Training", "Speed")
    and name not in ("data_dir", "resume", "device", "num_workers", "cache_memory")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep as it was asked for."""

    config: TrainConfig
    preset: str
    space: tuple[Dimension, ...]
    num_trials: int  # finished ones, of all processes and times together
    name: str
    storage: Path
    pruner: str = "median"

    def recipe(self, splits: Splits) -> dict[str, Any]:
        """What two processes must agree on to work on one study."""
        settings = {name: getattr(self.config, name) for name in DECISIVE}
        dataset = [splits.fingerprints[split] for split in ("train", "validation")]
        search = "; ".join(map(str, self.space))
        return {"preset": self.preset, "search": search, "pruner": self.pruner, **settings, "images": dataset}


def open_study(plan: Plan, splits: Splits) -> "Study":
    """The study of that name, made when it is new; raises ConfigError when it searches something else."""
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = plan.storage.absolute()
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
        study = optuna.create_study(
            storage=storage,
            study_name=plan.name,
            direction="maximize",
            pruner=make_pruner(plan),
            load_if_exists=True,
        )
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise TrackingError(f"The storage {path} cannot be used ({reason}): name another with --storage.") from error
    recipe = plan.recipe(splits)
    was = study.user_attrs.get("recipe")
    if was is None:
        study.set_user_attr("recipe", recipe)
        return study
    for name in recipe | was:
        if was.get(name) != recipe.get(name):
            raise ConfigError(
                f"The study {plan.name!r} in {plan.storage} was started with {name} {was.get(name)}, now it is "
                f"{recipe.get(name)}: type the same as then to go on with it, or another --name to start anew."
            )
    return study


def make_pruner(plan: Plan) -> "BasePruner":
    """What stops a trial early: below the median of those before it at the same epoch, or successive halving."""
    from optuna import pruners

    warmup = 1 + max(1, plan.config.epochs // 4)  # the epochs of a rising learning rate say little
    if plan.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=warmup, max_resource=max(plan.config.epochs, warmup))
    return pruners.MedianPruner(4, warmup) if plan.pruner == "median" else pruners.NopPruner()


def known_parent(study: "Study") -> str | None:
    """The parent run of a study that goes on; None for a new one. Raises TrackingError when it is not there."""
    import mlflow

    parent_id = study.user_attrs.get("parent")
    if parent_id is None:
        return None
    client = mlflow.MlflowClient()
    try:
        stage = client.get_run(parent_id).info.lifecycle_stage
    except mlflow.MlflowException:
        stage = "missing"
    if stage != "active":
        raise TrackingError(
            f"The study {study.study_name!r} belongs to the run {parent_id}, which is {stage} in this tracking store: "
            "name its store with --tracking-uri, or start another study with --name."
        )
    if by_project := os.environ.get("MLFLOW_RUN_ID"):
        client.set_tag(by_project, "goes_on_in", parent_id)
    return parent_id


def leave(crew: Crew, study: "Study", kind: type[BaseException] | None) -> None:
    """Go; the parent stays RUNNING while others are at work, and the last one to go ends it."""
    import mlflow

    status = "FINISHED" if kind is None else "KILLED" if kind is KeyboardInterrupt else "FAILED"
    with crew.alone(), contextlib.suppress(*(() if kind is None else (Exception,))):  # what is raised says more
        crew.leave()
        if parent_id := study.user_attrs.get("parent"):
            client = mlflow.MlflowClient()
            if crew.others():
                client.update_run(parent_id, status="RUNNING")
            else:
                client.set_terminated(parent_id, status)


def clear_up(study: "Study", crew: Crew, output_dir: Path) -> None:
    """End the trials and the runs of processes that were killed; to be called while `alone`."""
    import mlflow
    from optuna.trial import TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    alive = [trial for trial in running if crew.is_at_work(trial.user_attrs.get("worker"))]
    for trial in running:
        if trial not in alive:
            give_back(study, trial)
    client = mlflow.MlflowClient()
    parent_id = study.user_attrs["parent"]
    found = client.search_runs(
        [client.get_run(parent_id).info.experiment_id],
        f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{parent_id}'",
    )
    for run in found:
        if run.data.tags.get("trial") not in {str(trial.number) for trial in alive}:
            client.set_terminated(run.info.run_id, "KILLED")
            remove_checkpoints(output_dir / run.info.run_id)


def give_back(study: "Study", trial: "FrozenTrial | Trial") -> None:
    """Mark a trial that did not come to its end as failed, and have its settings tried again, once."""
    from optuna.trial import TrialState

    study.tell(trial.number, state=TrialState.FAIL)
    if trial.params and "again" not in trial.user_attrs:
        study.enqueue_trial(trial.params, user_attrs={"again": trial.number})


def remove_checkpoints(folder: Path) -> None:
    """A trial is not resumed, and what comes of a sweep is trained anew: its checkpoints would fill the disk."""
    for file in folder.glob("*.pt"):
        file.unlink(missing_ok=True)
