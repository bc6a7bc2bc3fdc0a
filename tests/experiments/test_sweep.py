"""Several seeds as one study, and sweeps: what their parents say, what survives a kill, and what is never looked at."""

import dataclasses
import json
import os
import shlex
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from click.testing import CliRunner
from support.toys import settle

from vitcifar import cli, pipeline, tracking
from vitcifar.config import resolve
from vitcifar.errors import ConfigError, TrackingError, TrainingError
from vitcifar.experiments import search_space, seeds
from vitcifar.experiments.storage import Plan
from vitcifar.experiments.sweep import sweep
from vitcifar.experiments.workers import Crew

ROOT = Path(__file__).parents[2]
TINY = {"train_per_class": 10, "validation_per_class": 5, "test_per_class": 5, "epochs": 2, "promote_to": "none"}
SEARCH = "learning_rate=1e-4..1e-2:log; optimizer=adam,sgd"
SWEEP = ["sweep", "--preset", "digits", "--search", SEARCH]
for name, value in TINY.items():
    if name != "promote_to":
        SWEEP += [f"--{name.replace('_', '-')}", str(value)]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A new tracking store: copying it is quicker than making one."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    tracking.create_store(path)
    return path


@pytest.fixture
def store(tmp_path, monkeypatch, empty_store):
    """A folder with a tracking store of its own, which is also where runs and storages go."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    settle(tmp_path, monkeypatch)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


def plan(num_trials=4, search=SEARCH, storage="sweeps.db", name="sweep", pruner="median", **more):
    config = resolve("digits", **{**TINY, **more})
    dimensions = search_space.parse_space([search], {})
    return Plan(
        config=config,
        preset="digits",
        space=dimensions,
        num_trials=num_trials,
        name=name,
        storage=Path(storage),
        pruner=pruner,
    )


def family(client):
    """The only parent of a store, and its children by name."""
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == len(runs) - 1
    return parents[0], {run.info.run_name: run for run in children}


def states(storage="sweeps.db"):
    """How many trials a storage has in each state; none while there is no storage."""
    try:
        with sqlite3.connect(f"file:{storage}?mode=ro", uri=True) as connection:
            return Counter(state for (state,) in connection.execute("select state from trials"))
    except sqlite3.OperationalError:
        return Counter()


def start_sweep(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mlproject", *SWEEP, *words]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


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

    monkeypatch.setattr(pipeline, "learn", learn)


# Sweeps


def test_a_sweep_killed_half_way_goes_on_to_exactly_four_trials_under_one_parent(store, tmp_path):
    killed = start_sweep(tmp_path, "--trials", "4")
    wait_until(lambda: states()["COMPLETE"] == 2 and states()["RUNNING"] == 1, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    resumed = CliRunner().invoke(cli.main, [*SWEEP, "--trials", "4"])
    assert resumed.exit_code == 0, resumed.output
    assert states() == {"COMPLETE": 4, "FAIL": 1}
    parent, children = family(store)
    assert parent.info.status == "FINISHED"
    ends = Counter(run.info.status for run in children.values())
    # The kill may have come before the run of the third trial was made.
    assert ends["FINISHED"] == 4 and ends["KILLED"] <= 1 and ends.total() == 4 + ends["KILLED"]
    tried = {name: run.data.params["config.learning_rate"] for name, run in children.items()}
    assert tried.get("trial-2", tried["trial-3"]) == tried["trial-3"]  # what was killed is tried again
    assert len(set(tried.values())) == 4
    assert parent.data.tags["best_command"] in resumed.output
    assert not list(tmp_path.glob("runs/*/*.pt"))
    assert not list(tmp_path.glob("*.worker"))
    assert tracking.compare_logs(parent.info.run_id).differences == ()


def test_the_command_that_a_sweep_gives_trains_with_the_best_trials_settings(store):
    tally = sweep(plan(num_trials=2))
    words = shlex.split(tally.best.command)
    context = cli.main.commands["train"].make_context("train", words[2:])
    params = dict(context.params)
    preset = params.pop("preset")
    known = {field.name for field in dataclasses.fields(pipeline.TrainConfig)}
    typed = {name: value for name, value in cli.given(params).items() if name in known}
    folder = mlflow.artifacts.download_artifacts(run_id=tally.best.run_id, artifact_path="config.json")
    assert dataclasses.asdict(resolve(preset, **typed)) == json.loads(Path(folder).read_text())


def test_two_processes_share_one_study_and_its_trials(store, monkeypatch, tmp_path):
    others = []
    learn = pipeline.learn

    def learn_beside(*args, **more):
        """Before the first trial here goes on, another process has joined and finished one."""
        if not others:
            others.append(start_sweep(tmp_path, "--trials", "5"))
            wait_until(lambda: states()["COMPLETE"] == 1, others[0])
        return learn(*args, **more)

    monkeypatch.setattr(pipeline, "learn", learn_beside)
    tally = sweep(plan(num_trials=5))
    assert others[0].wait() == 0, others[0].stderr.read()
    assert states()["COMPLETE"] + states()["PRUNED"] == sum(states().values()) == 5
    parent, children = family(store)
    assert parent.info.run_id == tally.run_id
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    assert sorted(children) == [f"trial-{number}" for number in range(5)]
    assert len({run.data.params["config.learning_rate"] for run in children.values()}) == 5
    assert not list(tmp_path.glob("*.worker"))


def test_the_parent_runs_while_another_process_is_at_work(store, monkeypatch):
    fake_learning(monkeypatch, [[0.2, 0.4]])
    other = Crew(Path("sweeps.db").absolute(), "sweep")
    other.join()
    sweep(plan(num_trials=1))
    assert family(store)[0].info.status == "RUNNING"
    other.leave()
    sweep(plan(num_trials=1))
    assert family(store)[0].info.status == "FINISHED"


def test_no_test_picture_is_looked_at_in_a_sweep(store, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the test images were asked for")

    seen = []
    learn = pipeline.learn

    def spy(run, network, splits, config, **more):
        seen.append({split: len(dataset) for split, dataset in splits.datasets.items()})
        return learn(run, network, splits, config, **more)

    monkeypatch.setattr(pipeline, "learn", spy)
    monkeypatch.setattr(pipeline, "test", never)
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


def test_a_hopeless_trial_is_stopped_early_and_is_no_failure(store, monkeypatch):
    good = [0.2, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8]
    hopeless = [0.1] * 8
    fake_learning(monkeypatch, [good, good, good, [*good[:-1], 0.9], hopeless])
    tally = sweep(plan(num_trials=5, epochs=8))
    assert (tally.num_complete, tally.num_pruned) == (4, 1)
    assert (tally.best.number, tally.best.accuracy) == (3, 0.9)
    parent, children = family(store)
    assert children["trial-4"].data.tags["pruned"] == "after epoch 3"
    assert children["trial-4"].info.status == "FINISHED"
    assert len(store.get_metric_history(children["trial-4"].info.run_id, "validation/accuracy")) == 3
    assert parent.data.tags["best_run"] == children["trial-3"].info.run_id
    assert "| 4 | pruned after epoch 3 | 0.1000 |" in parent.data.tags["mlflow.note.content"]


def test_of_equal_trials_the_one_with_the_lower_loss_is_the_best(store, monkeypatch):
    metrics = iter([{"validation/accuracy": 0.5, "validation/loss": loss} for loss in (0.9, 0.2, 0.4)])
    monkeypatch.setattr(pipeline, "learn", lambda *_, **__: SimpleNamespace(best_metrics=next(metrics)))
    assert sweep(plan(num_trials=3)).best.number == 1


def test_a_trial_that_diverges_is_told_and_the_sweep_goes_on(store, monkeypatch):
    fake_learning(monkeypatch, [TrainingError("train/loss became nan at step 3"), [0.2, 0.4]])
    tally = sweep(plan(num_trials=2))
    assert (tally.num_complete, tally.num_pruned, tally.best.number) == (1, 1, 1)
    _, children = family(store)
    assert children["trial-0"].info.status == "FAILED"
    assert children["trial-0"].data.tags["failure"] == "train/loss became nan at step 3"


def test_a_sweep_without_a_trial_that_came_to_its_end_fails_with_the_reason(store, monkeypatch):
    fake_learning(monkeypatch, [TrainingError("the loss became nan")] * 2)
    with pytest.raises(TrainingError, match=r"No trial of the study 'sweep' came to its end: the loss became nan"):
        sweep(plan(num_trials=2))
    assert family(store)[0].info.status == "FAILED"


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("a bug"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_what_stops_a_sweep_leaves_nothing_running_and_it_can_go_on(store, monkeypatch, error, status):
    fake_learning(monkeypatch, [[0.2, 0.4], error])
    with pytest.raises(type(error)):
        sweep(plan(num_trials=3))
    parent, children = family(store)
    assert (parent.info.status, children["trial-1"].info.status) == (status, status)
    assert states() == {"COMPLETE": 1, "FAIL": 1, "WAITING": 1}
    fake_learning(monkeypatch, [[0.2, 0.3], [0.2, 0.5]])
    tally = sweep(plan(num_trials=3))
    assert (tally.num_complete, tally.num_killed, tally.best.accuracy) == (3, 1, 0.5)
    assert family(store)[0].info.status == "FINISHED"


def test_a_trial_whose_settings_exclude_each_other_is_told(store, monkeypatch):
    fake_learning(monkeypatch, [[0.1, 0.2]] * 9)
    tally = sweep(plan(num_trials=6, search="train_layers=head,all; lora_rank=2,4"))
    assert tally.num_complete + tally.num_pruned == 6
    assert tally.num_pruned and "train_layers is head" in tally.failure


def test_under_a_project_its_run_is_the_parent_also_when_the_sweep_goes_on(store, monkeypatch):
    fake_learning(monkeypatch, [[0.2, 0.4]] * 3)
    experiment = store.create_experiment("project")
    first, second = (store.create_run(experiment, run_name=name).info.run_id for name in ("first", "second"))
    monkeypatch.setenv("MLFLOW_RUN_ID", first)
    assert sweep(plan(num_trials=1)).run_id == first
    monkeypatch.setenv("MLFLOW_RUN_ID", second)
    assert sweep(plan(num_trials=3)).run_id == first
    assert store.get_run(second).data.tags["goes_on_in"] == first
    runs = {run.info.run_name: run for run in store.search_runs([experiment])}
    assert sorted(runs) == ["first", "second", "trial-0", "trial-1", "trial-2"]
    assert {runs[f"trial-{n}"].data.tags["mlflow.parentRunId"] for n in range(3)} == {first}
    assert [m.step for m in store.get_metric_history(first, "sweep/best_validation_accuracy")] == [1, 2, 3]


def test_a_study_goes_on_only_with_the_settings_and_pictures_that_it_has(store, monkeypatch):
    fake_learning(monkeypatch, [[0.2, 0.4]] * 9)
    sweep(plan(num_trials=1))
    for other in (plan(batch_size=8), plan(search="optimizer=adam,sgd"), plan(data_seed=1), plan(pruner="none")):
        with pytest.raises(ConfigError, match="another --name"):
            sweep(other)
    sweep(plan(num_trials=1, name="other", batch_size=8))
    assert sweep(plan(num_trials=2, output_dir="elsewhere")).num_complete == 2


def test_a_parent_that_is_not_in_the_tracking_store_is_told(store, monkeypatch, tmp_path):
    fake_learning(monkeypatch, [[0.2, 0.4]])
    sweep(plan(num_trials=1))
    (tmp_path / "new").mkdir()
    settle(tmp_path / "new", monkeypatch)
    with pytest.raises(TrackingError, match=r"missing in this tracking store: name its store with --tracking-uri"):
        sweep(plan(num_trials=2))


def test_a_storage_that_cannot_be_used_is_told_before_there_is_a_run(store, tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be taken for one" * 30)
    with pytest.raises(TrackingError, match="cannot be used"):
        sweep(plan(storage="notes.txt"))
    with pytest.raises(TrackingError, match="cannot be made"):
        sweep(plan(storage="notes.txt/sweeps.db"))
    assert not (tmp_path / "runs").exists()


def test_without_optuna_a_sweep_says_what_to_type(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = CliRunner().invoke(cli.main, SWEEP)
    assert result.exit_code == 1
    assert "pip install -e '.[sweep]'" in result.output


def test_a_lock_tells_who_is_at_work(tmp_path):
    here, other = (Crew(tmp_path / "sweeps.db", "a") for _ in range(2))
    elsewhere = Crew(tmp_path / "sweeps.db", "another study")
    here.join()
    elsewhere.join()
    assert here.is_at_work(here.name) and not here.others()
    other.join()
    assert here.others() and here.is_at_work(other.name)
    other.leave()
    assert not here.others() and not here.is_at_work(other.name)


# What is searched


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rate", "is nothing to search"),
        ("rate=1..2", "There is no setting 'rate': choose from arch"),
        ("data=digits,folder", "data is the same in every trial: type --data"),
        ("seed=0,1", "seed is the same in every trial"),
        ("learning_rate=1e-2..1e-4", "type the lower end first"),
        ("learning_rate=0..1:log", "a lower end above 0"),
        ("learning_rate=1e-4..1e-2:square", "type :log after the range"),
        ("learning_rate=fast..slow", "expected float"),
        ("epochs=1.5..3", "expected int"),
        ("epochs=0..3", "epochs is 0: it must be at least 1"),
        ("label_smoothing=0..2", "it must be at most 0.9"),
        ("optimizer=adam,adamm", "choose one of adam, adamw, sgd"),
        ("optimizer=adam", "or --optimizer adam to set it"),
        ("optimizer=adam..sgd", "optimizer has no range"),
        ("epochs=1..2;epochs=3,4", "epochs is searched twice"),
        ("batch_size=8,16", "both searched and given as 32"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        search_space.parse_space([text], {"batch_size": 32})


def test_ranges_and_choices_are_read_as_the_settings_types():
    rate, epochs, layers = search_space.parse_space(
        ["learning-rate=1e-4..1e-2:log", "epochs=5..20;train_layers=head,2"], {}
    )
    assert (rate.name, rate.low, rate.high, rate.log) == ("learning_rate", 1e-4, 1e-2, True)
    assert (epochs.low, epochs.high, type(epochs.low), epochs.log) == (5, 20, int, False)
    assert layers.values == ("head", "2")


def test_the_usual_space_leaves_out_what_is_given_and_is_possible():
    names = [dimension.name for dimension in search_space.parse_space(["usual"], {"optimizer": "adam"})]
    assert names == ["learning_rate", "weight_decay", "label_smoothing"]


# Seeds


@pytest.fixture
def few_figures(monkeypatch):
    """Children without figures: drawing them takes longer than training."""
    monkeypatch.setattr("vitcifar.report.log.figures", lambda *_: {})


def test_the_parent_of_seeds_has_the_mean_and_the_interval_of_its_children(store, few_figures, monkeypatch):
    released = SimpleNamespace(model_name="vitcifar", version=7)
    monkeypatch.setattr(pipeline, "release", lambda run, network, *_: released)
    done = seeds.train_seeds(resolve("digits", **{**TINY, "analysis": "none", "learning_rate": 3e-3, "seed": 4}), 3)
    parent, children = family(store)
    assert sorted(children) == ["seed-4", "seed-5", "seed-6"]
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert len({run.data.params["config.fingerprint"] for run in children.values()}) == 1  # the same images
    assert len({run.data.metrics["validation/loss"] for run in children.values()}) == 3  # other weights
    for name in ("accuracy", "loss"):
        values = [run.data.metrics[f"test/{name}"] for run in children.values()]
        half = 4.302652729696 * statistics.stdev(values) / 3**0.5  # Student's t with 2 degrees of freedom
        expected = {"mean": sum(values) / 3, "low": sum(values) / 3 - half, "high": sum(values) / 3 + half}
        for part, value in expected.items():
            assert parent.data.metrics[f"seeds/test/{name}_{part}"] == pytest.approx(value, abs=1e-12)
    assert "95 % interval is Student's t over the seeds" in parent.data.tags["mlflow.note.content"]
    best = max(children.values(), key=lambda run: (max_of(store, run, "accuracy"), -max_of(store, run, "loss")))
    assert parent.data.tags["best_run"] == done.best.run_id
    assert max_of(store, best, "accuracy") == done.best.metrics["validation/accuracy"]
    assert parent.data.tags["version"] == "vitcifar/7"
    assert done.best.network is not None
    assert [child.network for child in done.children if child is not done.best] == [None, None]


def max_of(client, run, name):
    return max(metric.value for metric in client.get_metric_history(run.info.run_id, f"validation/{name}"))


def test_the_best_seed_is_chosen_on_validation():
    def child(seed, validation, loss, test):
        metrics = {"validation/accuracy": validation, "validation/loss": loss, "test/accuracy": test}
        config = resolve("digits", seed=seed)
        return seeds.Child(
            seed=seed, run_id=str(seed), metrics=metrics, config=config, evaluation=None, network=object()
        )

    kept = seeds.keep_best_network([child(0, 0.8, 0.3, 0.99), child(1, 0.9, 0.3, 0.5), child(2, 0.9, 0.2, 0.4)])
    assert [one.seed for one in kept if one.network] == [2]


def test_several_seeds_as_a_project_release_the_best_one(store, few_figures, monkeypatch):
    experiment = store.create_experiment("project")
    project = store.create_run(experiment, run_name="project").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", project)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "promote_to": "champion"}.items()]
    done = CliRunner().invoke(cli.main, ["train", "--preset=digits", "--analysis=none", "--seeds=2", *words])
    assert done.exit_code == 0, done.output
    runs = {run.info.run_name: run for run in store.search_runs([experiment])}
    assert sorted(runs) == ["project", "seed-0", "seed-1"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    champion = store.get_model_version_by_alias("vitcifar", "champion")
    assert champion.run_id == runs["project"].data.tags["best_run"]
    assert runs["project"].data.tags["version"] == "vitcifar/1"
    assert f"parent run     {project}" in done.output
    assert tracking.compare_logs(champion.run_id).differences == ()
    assert tracking.compare_logs(project).differences == ()


def test_a_seed_that_fails_ends_the_parent_with_its_sentence_and_the_finished_ones_stay(
    store, few_figures, monkeypatch
):
    learn = pipeline.learn

    def fail(run, network, splits, config, **more):
        if config.seed == 1:
            raise TrainingError("the loss became nan")
        return learn(run, network, splits, config, **more)

    monkeypatch.setattr(pipeline, "learn", fail)
    with pytest.raises(TrainingError, match="Seed 1: the loss became nan"):
        seeds.train_seeds(resolve("digits", **{**TINY, "analysis": "none"}), 3)
    parent, children = family(store)
    assert {name: run.info.status for name, run in children.items()} == {"seed-0": "FINISHED", "seed-1": "FAILED"}
    assert parent.info.status == "FAILED"
    assert parent.data.tags["failure"] == "Seed 1: the loss became nan"


def test_processes_that_train_one_run_together_are_told_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="several seeds are several runs: start one process"):
        seeds.train_seeds(resolve("digits"), 2)
    with pytest.raises(ConfigError, match="the trials of a sweep are runs of their own"):
        sweep(plan())


def test_seeds_are_not_resumed():
    with pytest.raises(ConfigError, match="leave --seeds out"):
        seeds.train_seeds(resolve("digits", resume="last"), 2)
