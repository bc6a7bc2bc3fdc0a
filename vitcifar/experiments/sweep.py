"""A search over settings with Optuna: nested runs under one parent, chosen on validation; no test image is looked at.

What is known of a sweep is in its storage: a process that comes, again or beside others, goes on where they are.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vitcifar import pipeline, tracking
from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits
from vitcifar.errors import ConfigError, TrainingError
from vitcifar.experiments.search_space import readable
from vitcifar.experiments.storage import Plan, clear_up, give_back, known_parent, leave, open_study, remove_checkpoints
from vitcifar.experiments.sweep_report import Tally, is_finished, show
from vitcifar.experiments.workers import Crew, refuse_several

if TYPE_CHECKING:
    from optuna import Study, Trial

    from vitcifar.training.loop import Log


def sweep(plan: Plan) -> Tally:
    """Work on a study until it has `num_trials` finished trials, pruned ones among them; raises VitCifarError.

    A trial whose process was killed counts as failed, and its settings are tried once more.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("A sweep needs Optuna, which is not installed: type pip install -e '.[sweep]'.")
    refuse_several("the trials of a sweep are runs of their own", plan.config.num_processes)
    splits = without_test(pipeline.read_splits(plan.config))
    pipeline.make_network(plan.config, splits.class_names)  # weights that are not there are told before there is a run
    crew = Crew(plan.storage.absolute(), plan.name)
    with contextlib.ExitStack() as stack:
        with crew.alone():
            study = open_study(plan, splits)
            parent_id = known_parent(study)
            crew.join()
            stack.push(lambda kind, error, trace: leave(crew, study, kind))  # comes after the parent's own end
            parent = stack.enter_context(pipeline.start_run(plan.config, run_name=plan.name, run_id=parent_id))
            if parent_id is None:
                study.set_user_attr("parent", parent.run_id)
                parent.log_params(plan.recipe(splits))
            clear_up(study, crew, Path(plan.config.output_dir))
        while trial := next_trial(plan, study, crew):
            run_trial(trial, plan, study, crew, splits, parent)
        with crew.alone():
            tally = show(parent, study, plan.config, plan.preset, whole=True)
        if tally.best is None:
            raise TrainingError(f"No trial of the study {plan.name!r} came to its end: {tally.failure}")
    return tally


def without_test(splits: Splits) -> Splits:
    """The same images, but for those of the test, which a sweep must not see."""
    return dataclasses.replace(splits, test=splits.test.subset([]))


def next_trial(plan: Plan, study: "Study", crew: Crew) -> "Trial | None":
    """Take the next trial, unless those that have finished and those that run are enough."""
    from optuna.samplers import TPESampler

    with crew.alone():
        clear_up(study, crew, Path(plan.config.output_dir))
        trials = study.get_trials(deepcopy=False)
        if sum(is_finished(trial) or trial.state.name == "RUNNING" for trial in trials) >= plan.num_trials:
            return None
        # Seeded by its number, so that a sweep that was killed proposes no trial twice.
        study.sampler = TPESampler(seed=plan.config.seed + len(trials), constant_liar=True)
        trial = study.ask({dimension.name: dimension.distribution() for dimension in plan.space})
        trial.set_user_attr("worker", crew.name)
        return trial


def run_trial(trial: "Trial", plan: Plan, study: "Study", crew: Crew, splits: Splits, parent: tracking.Run) -> None:
    """Train with a trial's settings. Settings that cannot be, or whose loss is not finite, count as pruned."""
    from optuna.trial import TrialState

    state, accuracy = TrialState.PRUNED, None
    settings = readable(trial.params, plan.space)
    trial.set_user_attr("settings", settings)
    try:
        metrics = train_trial(trial, dataclasses.replace(plan.config, **settings), splits)
        if metrics:
            state, accuracy = TrialState.COMPLETE, metrics["validation/accuracy"]
            trial.set_user_attr("loss", metrics["validation/loss"])
    except (ConfigError, TrainingError) as error:
        trial.set_user_attr("failure", str(error))
    except BaseException:
        with crew.alone():
            give_back(study, trial)
        raise
    with crew.alone():
        study.tell(trial, accuracy, state=state)
        show(parent, study, plan.config, plan.preset)


def train_trial(trial: "Trial", config: TrainConfig, splits: Splits) -> Mapping[str, float] | None:
    """The metrics of the best epoch; None when the trial was pruned."""
    from optuna import TrialPruned

    network = pipeline.make_network(config, splits.class_names)
    tags = {"trial": str(trial.number)}
    with pipeline.start_run(config, run_name=f"trial-{trial.number}", nested=True, tags=tags) as run:
        trial.set_user_attr("run_id", run.run_id)
        try:
            return pipeline.learn(run, network, splits, config, log=reporting(trial, run)).best_metrics
        except TrialPruned as pruned:
            run.set_tags({"pruned": str(pruned)})
            return None
        finally:
            remove_checkpoints(run.folder)


def reporting(trial: "Trial", run: tracking.Run) -> "Log":
    """The run's log, which also tells Optuna each epoch's accuracy on validation and raises TrialPruned."""
    from optuna import TrialPruned

    epochs = itertools.count(1)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        run.log(step, metrics)
        if "validation/accuracy" in metrics:
            epoch = next(epochs)
            trial.report(metrics["validation/accuracy"], epoch)
            if trial.should_prune():
                raise TrialPruned(f"after epoch {epoch}")

    return log
