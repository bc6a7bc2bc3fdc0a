"""Small sweeps and seeds: their settings, their runs, and accuracies in place of training."""

from pathlib import Path
from types import SimpleNamespace

from vitcifar import pipeline
from vitcifar.experiments.search_space import parse_space
from vitcifar.experiments.sweep import SweepPlan
from vitcifar.presets import resolve

TINY = {"train_per_class": 10, "validation_per_class": 5, "test_per_class": 5, "epochs": 2, "promote_to": "none"}
SEARCH = "learning_rate=1e-4..1e-2:log; optimizer=adam,sgd"


def plan(num_trials=4, search=SEARCH, storage="sweeps.db", name="sweep", pruner="median", **more):
    return SweepPlan(
        config=resolve("digits", **{**TINY, **more}),
        preset="digits",
        space=parse_space([search], {}),
        num_trials=num_trials,
        name=name,
        storage=Path(storage),
        pruner=pruner,
    )


def family(client):
    """The only parent of a store, and its children by kind and number: trial-0, seed-4."""
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == len(runs) - 1
    return parents[0], {f"{run.data.tags['kind']}-{run.data.tags[run.data.tags['kind']]}": run for run in children}


def fake_learning(monkeypatch, accuracies):
    """Put accuracies by epoch, one list (or an error) for each trial in turn, in place of training."""
    turns = iter(accuracies)

    def learn(run, network, splits, config, *, log=None, **_):
        turn = next(turns)
        if isinstance(turn, BaseException):
            raise turn
        for epoch, accuracy in enumerate(turn, start=1):
            log(epoch, {"validation/accuracy": accuracy, "validation/loss": 1 - accuracy})
        return SimpleNamespace(best_metrics={"validation/accuracy": max(turn), "validation/loss": 1 - max(turn)})

    monkeypatch.setattr(pipeline, "fit_and_log", learn)
