"""No outage of the tracking store ends a training, and everything is delivered once when it is back."""

import contextlib
import json
import sqlite3
import threading
import time
from pathlib import Path

import mlflow
import pytest
from PIL import Image
from support.faulty_proxy import FAULTS, FaultyProxy

from vitcifar import journal, outage, pipeline, tracking
from vitcifar.errors import TrackingError
from vitcifar.experiments.logs import compare_logs
from vitcifar.outage import is_transient
from vitcifar.presets import resolve

PROFILE = {"num_images": 4, "num_classes": 2}


@pytest.fixture
def proxy(server, tmp_path, monkeypatch):
    """A real MLflow server behind a proxy that can fail; connected to, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setattr(journal, "PATIENCE", 0.5)
    monkeypatch.setattr(tracking, "LAST_SECONDS", 1.0)
    monkeypatch.setattr(journal, "LAST_SECONDS", 1.0)
    proxy = FaultyProxy(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    tracking.connect(proxy.uri)
    yield proxy
    proxy.fault = ""
    proxy.shutdown()


def fail(proxy, monkeypatch, fault):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    proxy.fault = fault


def back(proxy, monkeypatch, *, ended=True):
    for thread in threading.enumerate():
        if thread.name.startswith("journal of") and ended:
            thread.join(60)  # it would have ended with its process
    proxy.fault = ""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(journal, "LAST_SECONDS", 30.0)


def start(**given):
    return tracking.start_run(experiment="journal", output_dir=Path("runs"), **given)


def log_everything(run):
    for split in ("validation", "test"):
        run.log_dataset(split, "ab" * 32, name="birds", location="/tmp", profile=PROFILE)
    run.log_params({"learning_rate": 1e-3})
    run.set_tags({"preset": "digits"})
    for step in range(1, 21):
        run.log(step, {"step/loss": 1 / step})
    run.log(20, {"train/loss": 0.5, "validation/accuracy": 0.75})
    run.log(0, {"test/accuracy": 0.625})
    run.log_text("report.html", "ünï <b>")
    run.log_image("mistakes", Image.new("RGB", (8, 6), "red"))
    run.log_table("evaluation/mistakes", {"image": [Image.new("RGB", (4, 4))] * 2, "label": ["cat", "dog"]})
    run.log_checkpoint("epoch 1", run.folder / "best.pt", 20, {"epoch": 1}, {"validation": 20, "test": 0})


def check_everything(run):
    """All of `log_everything` is in the store, once."""
    client = mlflow.MlflowClient()
    found = client.get_run(run.run_id)
    assert compare_logs(run.run_id).differences == ()
    assert len(client.get_metric_history(run.run_id, "step/loss")) == 20
    assert found.data.params["config.learning_rate"] == "0.001" and found.data.tags["preset"] == "digits"
    assert sorted(entry.dataset.name for entry in found.inputs.dataset_inputs) == ["birds-test", "birds-validation"]
    paths = [item.path for item in client.list_artifacts(run.run_id)]
    assert {"report.html", "figures", "evaluation", "tensorboard"} <= set(paths)
    table = client.load_table(found.info.experiment_id, "evaluation/mistakes.json", [run.run_id])
    assert table["label"].tolist() == ["cat", "dog"]
    (made,) = client.search_logged_models([found.info.experiment_id], filter_string=f"source_run_id = '{run.run_id}'")
    assert {metric.key for metric in made.metrics} == {"validation/accuracy", "test/accuracy"}


@pytest.mark.parametrize("fault", [*FAULTS[:3], *(pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS[3:])])
def test_a_server_that_fails_for_good_costs_no_training_and_sync_delivers_everything_once(proxy, monkeypatch, fault):
    lost = r"nothing is lost .*: when the store is back, type vitcifar sync \w{32}\."
    began, ended = [], []
    with pytest.raises(TrackingError, match=lost), start() as run:
        fail(proxy, monkeypatch, fault)
        began.append(time.monotonic())
        log_everything(run)
        ended.append(time.monotonic())
    assert ended[0] - began[0] < 5 and time.monotonic() - ended[0] < 20
    back(proxy, monkeypatch)
    num_entries, trained = pipeline.sync(run.run_id, "runs")
    assert num_entries > 10 and trained is None
    assert run.client.get_run(run.run_id).info.status == "FINISHED", "all of its work was done"
    check_everything(run)
    with pytest.raises(TrackingError, match=r"Nothing of run \w+ waits in runs: .* --resume \w+"):
        pipeline.sync(run.run_id, "runs")


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [("503", 0), *(pytest.param("refuse", seconds, marks=pytest.mark.slow) for seconds in (5, 60))],
)
def test_after_an_outage_the_run_ends_as_if_nothing_had_been(proxy, monkeypatch, fault, seconds):
    with start() as run:
        fail(proxy, monkeypatch, fault)
        log_everything(run)
        for step in range(2 * seconds):
            run.log(step, {"train/accuracy": 0.5})
            time.sleep(0.5)
        back(proxy, monkeypatch, ended=False)
    check_everything(run)
    assert len(run.client.get_metric_history(run.run_id, "train/accuracy")) == 2 * seconds
    assert run.client.get_run(run.run_id).info.status == "FINISHED"
    assert not (run.folder / journal.FOLDER).exists()


def test_an_upload_that_takes_longer_than_the_patience_is_no_outage(proxy):
    proxy.upload_seconds = 1.5  # more than LAST_SECONDS here
    with start() as run:
        run.log_text("report.html", "large")
    assert run.client.get_run(run.run_id).info.status == "FINISHED"
    assert not (run.folder / journal.FOLDER).exists()


def test_a_server_that_stops_answering_at_an_upload_is_away_and_not_slow(proxy, monkeypatch):
    monkeypatch.setattr(outage, "ANSWER_SECONDS", 1)
    began = []
    with pytest.raises(TrackingError, match="nothing is lost"), start() as run:
        run.settle()
        proxy.fault = "hang"  # each upload would be waited for, for UPLOAD_SECONDS
        began.append(time.monotonic())
        for number in range(20):
            run.log_text(f"report {number}.html", "text")
        assert time.monotonic() - began[0] < 10
    assert time.monotonic() - began[0] < 20
    proxy.fault = ""
    back(proxy, monkeypatch)
    pipeline.sync(run.run_id, "runs")
    assert len([item for item in run.client.list_artifacts(run.run_id) if item.path.startswith("report")]) == 20


def test_the_waits_of_several_entries_at_the_end_of_a_run_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "sqlite:///mlflow.db")
    monkeypatch.setattr(journal, "PATIENCE", 0.1)
    monkeypatch.setattr(journal, "LAST_SECONDS", 1.0)
    monkeypatch.setattr(journal, "deliver", lambda *_: time.sleep(0.7))  # each within the time of all
    kept = journal.Journal(tmp_path / "runs" / "1" / journal.FOLDER, "1")
    for _ in range(10):
        kept.add("tags", tags={})
    began = time.monotonic()
    assert not kept.settle(journal.LAST_SECONDS)
    assert time.monotonic() - began < 2
    kept.close()


def test_the_next_run_delivers_what_a_killed_one_could_not(proxy, monkeypatch, capsys):
    with contextlib.suppress(TrackingError), start() as run:
        proxy.fault = "refuse"
        log_everything(run)
    entries = run.folder / journal.FOLDER / journal.ENTRIES
    with entries.open("a") as file:
        file.write('{"kind": "tags", "ta')  # a kill amid a line
    back(proxy, monkeypatch)
    with start():
        pass
    assert f"entries of run {run.run_id}, from when the tracking store was away" in capsys.readouterr().err
    check_everything(run)


def test_a_stopped_run_gets_its_status_when_the_store_is_back(proxy, monkeypatch):
    with pytest.raises(KeyboardInterrupt), start() as run:
        fail(proxy, monkeypatch, "hang")
        run.log(1, {"train/loss": 0.5})
        raise KeyboardInterrupt
    back(proxy, monkeypatch)
    assert run.client.get_run(run.run_id).info.status == "RUNNING"
    pipeline.sync(run.run_id, "runs")
    assert run.client.get_run(run.run_id).info.status == "KILLED"


def test_a_run_that_is_still_written_is_not_delivered_a_second_time(proxy):
    with start() as run, pytest.raises(TrackingError, match="is still training, in process"):
        pipeline.sync(run.run_id, "runs")


def test_a_release_that_the_store_did_not_take_is_made_by_sync(proxy, own_graph, monkeypatch):
    def leave(self):
        (self.folder / journal.RELEASE).touch()
        proxy.fault = "refuse"

    small = {"train_per_class": 5, "validation_per_class": 5, "test_per_class": 5, "epochs": 1, "benchmark_runs": 0}
    config = resolve("digits", **small, analysis="none", int8="off", promote_to="none")
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "expect_release", leave)
        with pytest.raises(TrackingError, match=r"nothing is lost .*type vitcifar sync"):
            pipeline.train(config)
    back(proxy, monkeypatch)
    (folder,) = Path("runs").glob("*/journal")
    _, trained = pipeline.sync(folder.parent.name, "runs")
    assert trained.version == 1 and trained.run_id == folder.parent.name
    assert mlflow.get_run(trained.run_id).info.status == "FINISHED"
    assert compare_logs(trained.run_id).differences == ()
    assert not folder.exists()


def test_a_locked_database_is_waited_for_by_the_journal_and_not_by_the_training(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setattr(journal, "PATIENCE", 0.2)
    tracking.connect()
    with start() as run:
        other = sqlite3.connect(folder / "mlflow.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        run.log(1, {"train/loss": 0.5})
        run.log(2, {"train/loss": 0.25})
        assert time.monotonic() - began < 2
        threading.Timer(1.0, lambda: other.execute("ROLLBACK")).start()
    assert len(run.client.get_metric_history(run.run_id, "train/loss")) == 2
    assert compare_logs(run.run_id).differences == ()


@pytest.mark.slow
def test_a_database_that_stays_locked_delays_the_end_by_half_a_minute_at_most_and_sync_delivers(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    tracking.connect()
    other = sqlite3.connect(folder / "mlflow.db", isolation_level=None)
    began = []
    with pytest.raises(TrackingError, match=r"another program has locked .* nothing is lost"), start() as run:
        other.execute("BEGIN EXCLUSIVE")
        began.append(time.monotonic())
        for step in range(1, 5):
            run.log(step, {"train/loss": 1 / step})
    assert time.monotonic() - began[0] < 30
    other.execute("ROLLBACK")
    assert pipeline.sync(run.run_id, "runs")[0] > 3
    assert len(run.client.get_metric_history(run.run_id, "train/loss")) == 4
    assert run.client.get_run(run.run_id).info.status == "FINISHED"
    assert compare_logs(run.run_id).differences == ()


def test_an_entry_that_mlflow_refuses_fails_the_run_at_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    tracking.connect()
    with pytest.raises(TrackingError, match="Changing param values is not allowed"), start() as run:
        run.log_params({"learning_rate": 1e-3})
        run.log_params({"learning_rate": 1e-2})
    assert mlflow.get_run(run.run_id).info.status == "FAILED"


def test_a_full_disk_is_not_waited_for():
    assert not is_transient(mlflow.MlflowException("(sqlite3.OperationalError) database or disk is full"))
    assert is_transient(mlflow.MlflowException("(sqlite3.OperationalError) database is locked"))
    assert not is_transient(mlflow.MlflowException("Run with id=1 not found"))


def test_an_outage_that_ends_a_run_below_is_one_for_the_run_above():
    lost = mlflow.MlflowException("(sqlite3.OperationalError) database is locked")
    below, above = TrackingError("of the store"), TrackingError("of the run below")
    below.__cause__, above.__cause__ = lost, below
    assert is_transient(above)
    below.__cause__ = mlflow.MlflowException("database or disk is full")
    assert not is_transient(above)


def test_what_is_kept_on_disk_names_no_password(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://me:secret@host/db")
    kept = journal.Journal(folder / "runs" / "1" / journal.FOLDER, "1")
    kept.close(keep=True)
    assert "secret" not in (kept.folder / journal.STORE).read_text()
    assert journal.is_of_this_store(kept.folder)
    assert json.loads("[]") == journal.read_entries(kept.folder)
