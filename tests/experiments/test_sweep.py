"""Sweeps: trials under one parent run, what survives a killed process, and that no test image is read."""

import dataclasses
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import mlflow
import optuna
import pytest
from click.testing import CliRunner
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import TrialState
from support.project import ROOT
from support.sweeps import SEARCH, TINY, fake_learning, family, plan
from support.toys import settle

from vitcifar import cli, pipeline
from vitcifar.data.splits import read_splits
from vitcifar.errors import ConfigError, TrackingError, TrainingError
from vitcifar.experiments import sweep as sweeping
from vitcifar.experiments.logs import compare_logs
from vitcifar.experiments.sweep import sweep
from vitcifar.presets import resolve
from vitcifar.training.distributed import LAUNCHED

SWEEP = ["sweep", "--preset", "digits", "--search", SEARCH]
for name, value in TINY.items():
    if name != "promote_to":
        SWEEP += [f"--{name.replace('_', '-')}", str(value)]
# The command with a short heartbeat, so that a test need not wait for the usual grace period.
PROGRAM = "from vitcifar.experiments import sweep; sweep.HEARTBEAT_SECONDS = 1; sweep.GRACE_SECONDS = {}; "
PROGRAM += "from vitcifar.cli import main; main()"
GRACE_SECONDS = 4


@pytest.fixture(autouse=True)
def short_heartbeat(monkeypatch):
    monkeypatch.setattr(sweeping, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(sweeping, "GRACE_SECONDS", GRACE_SECONDS)


def states(storage="sweeps.db"):
    """How many trials a storage has in each state; none while there is no storage."""
    try:
        with sqlite3.connect(f"file:{storage}?mode=ro", uri=True) as connection:
            return Counter(state for (state,) in connection.execute("select state from trials"))
    except sqlite3.OperationalError:
        return Counter()


def start_sweep(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM.format(GRACE_SECONDS), *SWEEP, *words]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_a_sweep_killed_half_way_is_resumed_to_exactly_four_trials_under_one_parent(store, tmp_path):
    killed = start_sweep(tmp_path, "--trials", "4")
    wait_until(lambda: states()["COMPLETE"] == 2 and states()["RUNNING"] == 1, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    resumed = CliRunner().invoke(cli.main, [*SWEEP, "--trials", "4"])
    assert resumed.exit_code == 0, resumed.output
    assert re.search(r"^Trial 3: lr\d\S*( \S+)*\.$", resumed.output, re.MULTILINE), "each is named with its settings"
    assert states() == {"COMPLETE": 4, "FAIL": 1}
    parent, children = family(store)
    assert parent.info.status == "FINISHED"
    ends = Counter(run.info.status for run in children.values())
    # The kill may have come before the run of the third trial was made.
    assert ends["FINISHED"] == 4 and ends["KILLED"] <= 1 and ends.total() == 4 + ends["KILLED"]
    tried = {name: run.data.params["config.learning_rate"] for name, run in children.items()}
    if "trial-2" in tried:
        assert ends["KILLED"] == 1
        assert list(tried.values()).count(tried["trial-2"]) == 2  # the settings of the killed trial are tried again
    assert len(set(tried.values())) == 4
    assert parent.data.tags["best_command"] in resumed.output
    assert not list(tmp_path.glob("runs/*/*.pt"))
    assert compare_logs(parent.info.run_id).differences == ()


def test_the_command_that_a_sweep_gives_trains_with_the_best_trials_settings(store):
    result = sweep(plan(num_trials=2))
    words = shlex.split(result.best.command)
    context = cli.main.commands["train"].make_context("train", words[2:])
    params = dict(context.params)
    preset = params.pop("preset")
    known = {field.name for field in dataclasses.fields(pipeline.TrainConfig)}
    typed = {name: value for name, value in cli.options.given(params).items() if name in known}
    folder = mlflow.artifacts.download_artifacts(run_id=result.best.run_id, artifact_path="config.json")
    assert dataclasses.asdict(resolve(preset, **typed)) == json.loads(Path(folder).read_text())


def test_two_processes_share_one_sweep_and_its_trials(store, monkeypatch, tmp_path):
    others = []
    learn = pipeline.fit_and_log

    def learn_beside(*args, **more):
        """Before the first trial of this process continues, another process has joined and finished one."""
        if not others:
            others.append(start_sweep(tmp_path, "--trials", "5"))
            wait_until(lambda: states()["COMPLETE"] == 1, others[0])
        return learn(*args, **more)

    monkeypatch.setattr(pipeline, "fit_and_log", learn_beside)
    result = sweep(plan(num_trials=5))
    assert others[0].wait() == 0, others[0].stderr.read()
    # Two that start a trial at the same moment may finish one trial too many.
    assert states()["COMPLETE"] + states()["PRUNED"] == sum(states().values()) in (5, 6)
    parent, children = family(store)
    assert parent.info.run_id == result.run_id
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    assert sorted(children) == [f"trial-{number}" for number in range(sum(states().values()))]
    assert len({run.data.params["config.learning_rate"] for run in children.values()}) == len(children)


def open_beside():
    """The study of the sweep, as another process has it open."""
    storage = optuna.storages.RDBStorage("sqlite:///sweeps.db", heartbeat_interval=1, grace_period=GRACE_SECONDS)
    return optuna.load_study(study_name="sweep", storage=storage)


def test_the_parent_stays_running_while_another_process_has_a_trial(store, monkeypatch):
    fake_learning(monkeypatch, [[0.2, 0.4], [0.2, 0.4]])
    monkeypatch.setattr(sweeping, "GRACE_SECONDS", 1)
    sweep(plan(num_trials=1))
    assert family(store)[0].info.status == "FINISHED"
    study = open_beside()
    trial = study.ask()
    trial.set_user_attr("process", "another")
    with get_heartbeat_thread(trial._trial_id, study._storage):
        assert sweep(plan(num_trials=3)).num_complete == 2
    assert family(store)[0].info.status == "RUNNING"
    study.tell(trial, state=TrialState.PRUNED)
    sweep(plan(num_trials=3))
    assert family(store)[0].info.status == "FINISHED"


def test_a_trial_whose_process_was_killed_before_its_first_heartbeat_fails(store, monkeypatch):
    fake_learning(monkeypatch, [[0.2, 0.4], [0.2, 0.4]])
    monkeypatch.setattr(sweeping, "GRACE_SECONDS", 1)
    sweep(plan(num_trials=1))
    open_beside().ask()
    assert sweep(plan(num_trials=2)).num_complete == 2
    assert states() == {"COMPLETE": 2, "FAIL": 1}


class Kill(BaseException):
    """What nothing handles."""


def test_a_trial_whose_process_was_killed_before_the_heartbeat_of_optuna_fails(store, monkeypatch):
    fake_learning(monkeypatch, [[0.2, 0.4], Kill(), [0.2, 0.4]])
    monkeypatch.setattr(sweeping, "GRACE_SECONDS", 1)
    sweep(plan(num_trials=1))
    with pytest.raises(Kill):
        sweeping.run_trial(open_beside().ask(), plan(), read_splits(plan().config))
    assert states() == {"COMPLETE": 1, "RUNNING": 1}
    assert sweep(plan(num_trials=2)).num_complete == 2
    assert states() == {"COMPLETE": 2, "FAIL": 1}


def test_a_trial_that_another_process_marked_as_failed_does_not_end_the_sweep(store, monkeypatch):
    fake_learning(monkeypatch, [[0.2, 0.4], [0.3, 0.5]])
    learn = pipeline.fit_and_log

    def suspended(*args, **more):
        if not states()["FAIL"]:
            open_beside().tell(0, state=TrialState.FAIL)
        return learn(*args, **more)

    monkeypatch.setattr(pipeline, "fit_and_log", suspended)
    with pytest.warns(UserWarning, match="no heartbeat for 15 seconds"):
        result = sweep(plan(num_trials=1))
    assert (result.num_complete, result.num_failed, result.best.number) == (1, 1, 1)
    assert "RUNNING" not in {run.info.status for run in family(store)[1].values()}


def test_no_test_image_is_read_in_a_sweep(store, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the test images were read")

    seen = []
    learn = pipeline.fit_and_log

    def spy(run, network, splits, config, **more):
        seen.append({split: len(dataset) for split, dataset in splits.datasets.items()})
        return learn(run, network, splits, config, **more)

    monkeypatch.setattr(pipeline, "fit_and_log", spy)
    monkeypatch.setattr(pipeline, "fit_and_test", never)
    monkeypatch.setattr(pipeline, "release", never)
    sweep(plan(num_trials=1))
    assert seen == [{"train": 100, "validation": 50, "test": 0}]
    parent, children = family(store)
    for run in (parent, *children.values()):
        assert not [name for name in run.data.metrics if name.startswith("test")]
    (child,) = children.values()
    datasets = [
        tag.value for data in child.inputs.dataset_inputs for tag in data.tags if tag.key == "mlflow.data.context"
    ]
    assert sorted(datasets) == ["train", "validation"]


def test_a_pruned_trial_is_no_failure(store, monkeypatch):
    good = [0.2, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8]
    hopeless = [0.1] * 8
    fake_learning(monkeypatch, [good, good, good, [*good[:-1], 0.9], hopeless])
    result = sweep(plan(num_trials=5, epochs=8))
    assert (result.num_complete, result.num_pruned) == (4, 1)
    assert (result.best.number, result.best.accuracy) == (3, 0.9)
    parent, children = family(store)
    assert children["trial-4"].data.tags["pruned"] == "after epoch 3"
    assert children["trial-4"].info.status == "FINISHED"
    assert len(store.get_metric_history(children["trial-4"].info.run_id, "validation/accuracy")) == 3
    assert parent.data.tags["best_run"] == children["trial-3"].info.run_id
    assert "| 4 | pruned after epoch 3 | 0.1000 |" in parent.data.tags["mlflow.note.content"]


def test_of_equal_trials_the_one_with_the_lower_loss_is_the_best(store, monkeypatch):
    metrics = iter([{"validation/accuracy": 0.5, "validation/loss": loss} for loss in (0.9, 0.2, 0.4)])
    monkeypatch.setattr(pipeline, "fit_and_log", lambda *_, **__: SimpleNamespace(best_metrics=next(metrics)))
    assert sweep(plan(num_trials=3)).best.number == 1


def test_a_trial_that_diverges_counts_as_pruned_and_the_sweep_continues(store, monkeypatch):
    fake_learning(monkeypatch, [TrainingError("train/loss became nan at step 3"), [0.2, 0.4]])
    result = sweep(plan(num_trials=2))
    assert (result.num_complete, result.num_pruned, result.best.number) == (1, 1, 1)
    _, children = family(store)
    assert children["trial-0"].info.status == "FAILED"
    assert children["trial-0"].data.tags["failure"] == "train/loss became nan at step 3"


def test_a_sweep_without_a_complete_trial_fails_with_the_reason(store, monkeypatch):
    fake_learning(monkeypatch, [TrainingError("the loss became nan")] * 2)
    with pytest.raises(TrainingError, match=r"No trial of the sweep 'sweep' completed: the loss became nan"):
        sweep(plan(num_trials=2))
    assert family(store)[0].info.status == "FAILED"


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("a bug"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_an_interrupted_sweep_leaves_no_run_running_and_can_be_resumed(store, monkeypatch, error, status):
    fake_learning(monkeypatch, [[0.2, 0.4], error])
    with pytest.raises(type(error)):
        sweep(plan(num_trials=3))
    parent, children = family(store)
    assert (parent.info.status, children["trial-1"].info.status) == (status, status)
    assert states() == {"COMPLETE": 1, "FAIL": 1, "WAITING": 1}
    fake_learning(monkeypatch, [[0.2, 0.3], [0.2, 0.5]])
    result = sweep(plan(num_trials=3))
    assert (result.num_complete, result.num_failed, result.best.accuracy) == (3, 1, 0.5)
    assert family(store)[0].info.status == "FINISHED"


def test_a_trial_whose_settings_exclude_each_other_counts_as_pruned(store, monkeypatch):
    fake_learning(monkeypatch, [[0.1, 0.2]] * 9)
    result = sweep(plan(num_trials=6, search="train_layers=head,all; lora_rank=2,4"))
    assert result.num_complete + result.num_pruned == 6
    assert result.num_pruned and "train_layers is head" in result.failure


def test_the_run_of_a_project_is_the_parent_and_stays_it_when_the_sweep_is_resumed(store, monkeypatch):
    fake_learning(monkeypatch, [[0.2, 0.4]] * 3)
    experiment = store.create_experiment("project")
    first, second = (store.create_run(experiment, run_name=name).info.run_id for name in ("first", "second"))
    monkeypatch.setenv("MLFLOW_RUN_ID", first)
    assert sweep(plan(num_trials=1)).run_id == first
    monkeypatch.setenv("MLFLOW_RUN_ID", second)
    assert sweep(plan(num_trials=3)).run_id == first
    assert store.get_run(second).data.tags["continues_in"] == first
    runs = {run.info.run_name: run for run in store.search_runs([experiment])}
    trials = [run for run in runs.values() if run.data.tags.get("kind") == "trial"]
    assert sorted(run.info.run_name.split(" lr")[0] for run in trials) == [f"sweep trial {n}" for n in range(3)]
    assert len(runs) == 5 and {run.data.tags["mlflow.parentRunId"] for run in trials} == {first}
    assert [m.step for m in store.get_metric_history(first, "validation/best_accuracy")] == [1, 2, 3]


def test_a_sweep_is_resumed_only_with_the_same_settings_and_images(store, monkeypatch):
    fake_learning(monkeypatch, [[0.2, 0.4]] * 9)
    sweep(plan(num_trials=1))
    for other in (plan(batch_size=8), plan(search="optimizer=adam,sgd"), plan(data_seed=1), plan(pruner="none")):
        with pytest.raises(ConfigError, match="another --name"):
            sweep(other)
    sweep(plan(num_trials=1, name="other", batch_size=8))
    assert sweep(plan(num_trials=2, output_dir="elsewhere")).num_complete == 2


def test_a_parent_missing_from_the_tracking_store_is_an_error(store, monkeypatch, tmp_path):
    fake_learning(monkeypatch, [[0.2, 0.4]])
    sweep(plan(num_trials=1))
    (tmp_path / "new").mkdir()
    settle(tmp_path / "new", monkeypatch)
    with pytest.raises(TrackingError, match=r"missing in this tracking store: name its store with --tracking-uri"):
        sweep(plan(num_trials=2))


def test_an_unusable_storage_is_an_error_before_there_is_a_run(store, tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be taken for one" * 30)
    with pytest.raises(TrackingError, match="cannot be used"):
        sweep(plan(storage="notes.txt"))
    with pytest.raises(TrackingError, match="cannot be created"):
        sweep(plan(storage="notes.txt/sweeps.db"))
    assert not (tmp_path / "runs").exists()


def test_without_optuna_a_sweep_says_what_to_type(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = CliRunner().invoke(cli.main, SWEEP)
    assert result.exit_code == 1
    assert "pip install -e '.[sweep]'" in result.output


def test_processes_that_train_one_run_together_cannot_run_a_sweep(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.setenv(name, "2")
    with pytest.raises(ConfigError, match="each trial of a sweep is a run of its own: start one process"):
        sweep(plan())
