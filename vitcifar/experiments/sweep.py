"""A hyperparameter search with Optuna: nested runs under one parent, selected on validation; no test image is read.

The state of a sweep is in Optuna's storage: the same command resumes it, and several processes share its trials. They
know each other by Optuna's heartbeats.
"""

import dataclasses
import importlib.util
import itertools
import os
import socket
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import mlflow

from vitcifar import pipeline, tracking
from vitcifar.config import TrainConfig, deciding_settings, groups
from vitcifar.data.splits import Splits
from vitcifar.errors import ConfigError, TrackingError, TrainingError, reason_of
from vitcifar.experiments.search_space import Dimension
from vitcifar.experiments.seeds import prepare
from vitcifar.experiments.sweep_report import SweepResult, log_result, open_parent, parent_run, trials_in
from vitcifar.networks import make_network
from vitcifar.presets import MAX_RUN_NAME, short
from vitcifar.progress import notify, several_runs
from vitcifar.uris import sqlite_uri

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

# Processes that share a sweep must agree on these; the others change no trial.
SHARED_SETTINGS = tuple(
    name for name, group in groups().items() if name in deciding_settings() or (group == "Data" and name != "data_dir")
)
HEARTBEAT_SECONDS = 5
GRACE_SECONDS = 15  # a trial without a heartbeat for this long has lost its process
LOST = f"no heartbeat for {GRACE_SECONDS} seconds, so another process marked the trial as failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep as it was requested."""

    config: TrainConfig
    preset: str
    space: tuple[Dimension, ...]
    num_trials: int  # finished ones, of all processes and earlier runs of the command together
    name: str
    storage: Path
    pruner: str = "median"

    def recipe(self, splits: Splits) -> dict[str, Any]:
        """What processes must agree on to share a sweep."""
        settings = {name: getattr(self.config, name) for name in SHARED_SETTINGS}
        dataset = [splits.fingerprints[split] for split in ("train", "validation")]
        search = "; ".join(map(str, self.space))
        return {"preset": self.preset, "search": search, "pruner": self.pruner, **settings, "images": dataset}


def sweep(plan: SweepPlan) -> SweepResult:
    """Run trials until `num_trials` are finished, pruned ones included; raises VitCifarError.

    The trial of a killed process fails once its heartbeat is GRACE_SECONDS old, and its settings are tried once more.
    Several processes that start a trial at the same moment may finish one trial each beyond `num_trials`.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("A sweep needs Optuna, which is not installed: type pip install -e '.[sweep]'.")
    config, splits = prepare(plan.config, "each trial of a sweep is a run of its own")
    plan = dataclasses.replace(plan, config=config)
    splits = dataclasses.replace(splits, test=splits.test.subset([]))  # a sweep must not read the test split
    path = plan.storage.absolute()
    lock = filelock.FileLock(f"{path}.lock")  # held while the sweep is opened and left
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except OSError as error:
        raise TrackingError(
            f"The storage {path} cannot be created ({error.strerror or error}): name one with --storage."
        ) from error
    with held:
        study = open_study(plan, splits)
        open_parent(study, plan)
    with parent_run(study, plan, lock) as parent:
        with several_runs():
            run_trials(study, plan, splits, parent)
        with lock:
            result = log_result(parent, study, plan, files=True)
        if result.best is None:
            raise TrainingError(f"No trial of the sweep {plan.name!r} completed: {result.failure}")
    return result


def open_study(plan: SweepPlan, splits: Splits) -> "Study":
    """The Optuna study of a sweep, created when it is new; raises ConfigError when it has another recipe."""
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats are "experimental" since 2021
    path = plan.storage.absolute()
    warmup = 1 + max(1, plan.config.epochs // 4)  # the epochs of a rising learning rate say little
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if plan.pruner == "hyperband":  # successive halving
        pruner = optuna.pruners.HyperbandPruner(min_resource=warmup, max_resource=max(plan.config.epochs, warmup))
    elif plan.pruner == "median":  # of earlier trials at the same epoch
        pruner = optuna.pruners.MedianPruner(4, warmup)
    try:
        storage = optuna.storages.RDBStorage(
            sqlite_uri(path),
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=partial(end_lost_trial, output_dir=Path(plan.config.output_dir)),
        )
        study = optuna.create_study(
            storage=storage, study_name=plan.name, direction="maximize", pruner=pruner, load_if_exists=True
        )
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        problem = f"The storage {path} cannot be used ({reason_of(getattr(error, 'orig', None) or error)})"
        raise TrackingError(f"{problem}: name another with --storage.") from error
    recipe = plan.recipe(splits)
    recorded = study.user_attrs.get("recipe", recipe)
    for name in recipe.keys() & recorded.keys():
        if recorded[name] != recipe[name]:
            raise ConfigError(
                f"The sweep {plan.name!r} in {plan.storage} was started with {name} {recorded[name]}, now it is "
                f"{recipe[name]}: type the same as then to resume it, or another --name to start a new one."
            )
    study.set_user_attr("recipe", recorded)
    return study


def run_trials(study: "Study", plan: SweepPlan, splits: Splits, parent: tracking.Run) -> None:
    """Start trials until those that are finished or running are enough."""

    def log(study: "Study", trial: "FrozenTrial") -> None:
        if best := log_result(parent, study, plan).best:
            parent.log(trial.number + 1, {"validation/best_accuracy": best.accuracy})

    started = ("COMPLETE", "PRUNED", "RUNNING")
    while True:
        if len(trials_in(study, *started)) >= plan.num_trials:
            wait_for_heartbeats(study, plan)
        if len(trials_in(study, *started)) >= plan.num_trials:
            return
        try:
            study.optimize(partial(run_trial, plan=plan, splits=splits), n_trials=1, callbacks=[log])
        except ValueError as error:
            if "Cannot tell a FAIL trial" not in str(error):
                raise
            warnings.warn(f"A trial of this process had {LOST}; its settings are tried again.", stacklevel=2)


def wait_for_heartbeats(study: "Study", plan: SweepPlan) -> None:
    """Wait until the trials of other processes end, at most for the grace period; trials without a process fail."""
    from optuna.storages import fail_stale_trials
    from optuna.trial import TrialState

    numbers = {trial.number for trial in trials_in(study, "RUNNING")}
    deadline = time.monotonic() + GRACE_SECONDS + 2  # the storage counts whole seconds
    while trials_in(study, "RUNNING") and time.monotonic() < deadline:
        time.sleep(0.5)
        fail_stale_trials(study)
    for trial in trials_in(study, "RUNNING"):
        if trial.number in numbers and "process" not in trial.user_attrs:  # killed before the first heartbeat
            study.tell(trial.number, state=TrialState.FAIL)
            end_lost_trial(study, trial, Path(plan.config.output_dir))


def run_trial(trial: "Trial", plan: SweepPlan, splits: Splits) -> float:
    """Train with a trial's settings; returns the validation accuracy of the best epoch, raises TrialPruned.

    Settings that exclude each other and a loss that is not finite count as pruned, with the reason as `failure`.
    """
    from optuna import TrialPruned
    from optuna.samplers import TPESampler

    # Before the attribute: Optuna's own thread may record the first heartbeat later.
    trial.storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    trial.set_user_attr("process", f"{socket.gethostname()}:{os.getpid()}")
    # Seeded by the trial, so that neither a resumed nor a parallel process proposes the same settings again.
    trial.study.sampler = TPESampler(seed=plan.config.seed + trial.number, constant_liar=True)
    try:
        settings = {dimension.name: dimension.suggest(trial) for dimension in plan.space}
        trial.set_user_attr("settings", settings)
        metrics = train_trial(trial, dataclasses.replace(plan.config, **settings), splits)
    except TrialPruned:
        raise
    except (ConfigError, TrainingError) as error:
        trial.set_user_attr("failure", str(error))
        raise TrialPruned(str(error)) from error
    except (Exception, KeyboardInterrupt):
        retry_once(trial.study, trial)
        raise
    trial.set_user_attr("loss", metrics["validation/loss"])
    return metrics["validation/accuracy"]


def train_trial(trial: "Trial", config: TrainConfig, splits: Splits) -> Mapping[str, float]:
    """The metrics of the best epoch; raises TrialPruned, which is no failure of the trial's run."""
    from optuna import TrialPruned
    from optuna.exceptions import UpdateFinishedTrialError

    settings = [short(name, value) for name, value in trial.user_attrs["settings"].items()]
    notify(f"Trial {trial.number}: {' '.join(settings)}.")
    network = make_network(config, splits.class_names)
    epochs = itertools.count(1)
    name = " ".join([trial.study.study_name, "trial", str(trial.number), *settings])[:MAX_RUN_NAME]
    with pipeline.start_run(config, "trial", name=name, nested=True, tags={"trial": str(trial.number)}) as run:
        trial.set_user_attr("run_id", run.run_id)

        def log(step: int, metrics: Mapping[str, float]) -> None:
            run.log(step, metrics)
            if "validation/accuracy" in metrics:
                epoch = next(epochs)
                try:
                    trial.report(metrics["validation/accuracy"], epoch)
                except UpdateFinishedTrialError:
                    raise TrialPruned(LOST) from None
                if trial.should_prune():
                    raise TrialPruned(f"after epoch {epoch}")

        try:
            return pipeline.fit_and_log(run, network, splits, config, log=log).best_metrics
        except TrialPruned as error:
            run.set_tags({"pruned": str(error)})
            pruned = error
        finally:
            remove_checkpoints(run.folder)
    raise pruned


def retry_once(study: "Study", trial: "FrozenTrial | Trial") -> None:
    """Queue the settings of an interrupted trial again, unless it was itself a second try."""
    if trial.params and "retry_of" not in trial.user_attrs:
        study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})


def end_lost_trial(study: "Study", trial: "FrozenTrial", output_dir: Path) -> None:
    """Queue the settings of a trial whose process was killed again, and end its run as KILLED."""
    retry_once(study, trial)
    client = mlflow.MlflowClient()
    parent_id = study.user_attrs["parent"]
    its_runs = f"tags.`mlflow.parentRunId` = '{parent_id}' and tags.trial = '{trial.number}'"
    experiments = [client.get_run(parent_id).info.experiment_id]
    for run in client.search_runs(experiments, f"attributes.status = 'RUNNING' and {its_runs}"):
        client.set_terminated(run.info.run_id, "KILLED")
        remove_checkpoints(output_dir / run.info.run_id)


def remove_checkpoints(folder: Path) -> None:
    """Trials are never resumed, and the result of a sweep is trained anew: checkpoints would fill the disk."""
    for file in folder.glob("*.pt"):
        file.unlink(missing_ok=True)
