"""The report of a sweep on its parent run."""

import json
import shlex

import mlflow
import optuna
from optuna.trial import TrialState
from support.sweeps import fake_learning, family, plan

from vitcifar.experiments.sweep import sweep
from vitcifar.experiments.sweep_report import plot_trials, summarize, trial_state
from vitcifar.presets import resolve, train_command


def test_the_command_names_only_the_settings_that_differ_from_the_preset():
    words = shlex.split(train_command("digits", resolve("digits", learning_rate=2e-3, run_name="two words")))
    assert words == ["vitcifar", "train", "--preset", "digits", "--learning-rate", "0.002", "--run-name", "two words"]


def finished_study():
    """A study with a complete trial, a pruned one, one that could not be trained, one that failed and one waiting."""
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("parent", "a run")
    space = {"learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)}
    space |= {"optimizer": optuna.distributions.CategoricalDistribution(("adam", "sgd"))}
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL):
        trial = study.ask(space)
        trial.set_user_attr("run_id", f"run {trial.number}")
        if trial.number < 2:
            trial.report(0.5, 3)
        if trial.number == 2:
            trial.set_user_attr("failure", "the loss became nan")
        trial.set_user_attr("loss", 0.1)
        study.tell(trial, 0.7 if state is TrialState.COMPLETE else None, state=state)
    study.enqueue_trial({"learning_rate": 1e-3, "optimizer": "sgd"})
    return study


def test_every_state_of_a_trial_is_counted_and_named():
    study = finished_study()
    result = summarize(study, plan())
    assert (result.num_complete, result.num_pruned, result.num_failed) == (1, 2, 1)
    assert (result.best.number, result.best.run_id, result.failure) == (0, "run 0", "the loss became nan")
    expected = ["complete", "pruned after epoch 3", "could not be trained", "failed", "waiting"]
    assert [trial_state(trial) for trial in study.get_trials()] == expected


def test_the_figure_shows_complete_and_pruned_trials_for_each_setting():
    study = finished_study()
    figure = plot_trials(study.get_trials(), summarize(study, plan()).best)
    marks = [[line.get_marker() for line in axes.get_lines()] for axes in figure.axes]
    assert [axes.get_xlabel() for axes in figure.axes] == ["learning_rate", "optimizer"]
    assert marks == [["x", "o"], ["x", "o"]]  # the best is drawn last, on top


def test_the_parent_has_every_trial_as_json(store, monkeypatch):
    fake_learning(monkeypatch, [[0.2, 0.4], [0.3, 0.5]])
    result = sweep(plan(num_trials=2))
    parent, children = family(store)
    path = mlflow.artifacts.download_artifacts(run_id=parent.info.run_id, artifact_path="sweep.json")
    with open(path) as file:
        report = json.load(file)
    assert report["result"]["best"]["command"] == result.best.command
    assert [row["accuracy"] for row in report["trials"]] == [{"1": 0.2, "2": 0.4}, {"1": 0.3, "2": 0.5}]
    assert [row["run_id"] for row in report["trials"]] == [children[f"trial-{n}"].info.run_id for n in range(2)]
