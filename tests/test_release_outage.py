"""A store that fails just while a release is made delays the end by half a minute at most, and `sync` makes it once."""

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import pytest
from support.faulty_proxy import FaultyProxy
from support.toys import settle

from vitcifar import outage, pipeline, tracking
from vitcifar.errors import TrackingError
from vitcifar.experiments.logs import compare_logs
from vitcifar.presets import resolve
from vitcifar.registry import derivation, registration, variants
from vitcifar.registry.registry import Registry
from vitcifar.release.build import MODEL_TAG

LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
input()
"""
SMALL = {"validation_per_class": 5, "test_per_class": 5, "epochs": 4, "benchmark_runs": 5, "analysis": "none"}
LOST = r"nothing is lost .*: when the store is back, type vitcifar sync \w{32}"
STAGES = {  # the call with which the fault begins
    "build": (registration, "build_release"),
    "upload": (mlflow.MlflowClient, "log_model_artifacts"),
    "register": (registration, "register"),
    "link": (registration, "link"),  # the version exists
    "benchmark": (pipeline, "benchmark"),
    "promote": (Registry, "promote"),
    "end": (mlflow, "end_run"),
    "variant": (derivation, "release_variant"),  # in a run below
    "promote the variant": (Registry, "promote"),
}


class Store:
    """A store that can fail: a SQLite file that another process locks, or a real server behind a faulty proxy."""

    def __init__(self, kind, path):
        self.kind, self.path, self.proxy, self.process = kind, path, None, None

    def begin(self):
        if self.proxy:
            self.proxy.fault = "hang"
            return
        command = [sys.executable, "-c", LOCK, str(self.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline()

    def end(self):
        if self.proxy:
            self.proxy.fault = ""
        if self.process:
            self.process.communicate(b"\n")
            self.process = None
        for thread in threading.enumerate():
            if thread.name.startswith("journal of"):
                thread.join(60)  # it would have ended with its process


@pytest.fixture(params=["locked", "hanging"])
def store(request, folder, monkeypatch):
    """A store of each kind in turn, connected to as a command does."""
    for name in (outage.RETRIES_VARIABLE, outage.TIMEOUT_VARIABLE):
        monkeypatch.setenv(name, "")  # so that its absence is restored
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    store = Store(request.param, path=folder / "mlflow.db")
    uri = settle(folder, monkeypatch)
    if request.param == "hanging":
        store.proxy = FaultyProxy(request.getfixturevalue("server"))
        uri = store.proxy.uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracking.connect(uri)
    yield store
    store.end()
    outage.expect_answers()


@pytest.fixture(scope="module")
def usual():
    """Seconds from the start of each stage to the end of a training without a fault, by kind of store and stage."""
    return {}


def train(model_name, **more):
    return pipeline.train(resolve("digits", **{**SMALL, "promote_to": "champion", **more}, model_name=model_name))


def note_start(patch, stage, started, begin=lambda: None):
    """Note when a stage starts for the first time, and let the fault begin with it."""
    owner, name = STAGES[stage]
    original = getattr(owner, name)

    def noted(*words, **given):
        if stage not in started:
            begin()
            started[stage] = time.monotonic()
        return original(*words, **given)

    patch.setattr(owner, name, noted)


def search_quickly(patch):
    """Let the search for a variant within a budget find one with two merged pairs."""
    patch.setattr(variants, "fastest_precision", lambda: "")  # without OpenVINO
    patch.setattr(variants, "default_sizes", lambda network: [network.image_size])
    patch.setattr(variants, "default_counts", lambda network: [0, 2])
    patch.setattr(variants, "MERGING_SCHEDULES", ("constant",))
    times = itertools.cycle((9.0, 9.0, 4.0, 9.0))
    patch.setattr(variants, "onnx_p95", lambda models: [next(times), 8.0])
    return {"max_p95_ms": 1000.0}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", STAGES)
def test_a_store_that_fails_while_a_release_is_made_delays_the_end_by_half_a_minute_and_sync_makes_it_once(
    store, stage, usual, monkeypatch
):
    variant = "variant" in stage
    more = search_quickly(monkeypatch) if variant else {}
    if (store.kind, stage) not in usual:
        for _ in range(1 if usual else 2):  # what torch and onnx do once is no delay
            started = {}
            with monkeypatch.context() as patch:
                for name in (name for name in STAGES if ("variant" in name) == variant):
                    note_start(patch, name, started)
                train("usual", **more)
        usual |= {(store.kind, name): time.monotonic() - began for name, began in started.items()}
    started, name = {}, f"failed at {stage}"
    with monkeypatch.context() as patch:
        note_start(patch, stage, started, store.begin)
        with pytest.raises(TrackingError, match=LOST):
            train(name, **more)
    delay = time.monotonic() - started[stage] - usual[store.kind, stage]
    assert delay < 30
    store.end()
    check_synced(name, num_versions=1 + variant)


@pytest.mark.parametrize("store", ["locked"], indirect=True)
def test_a_version_whose_answer_was_lost_is_not_registered_again(store, monkeypatch):
    monkeypatch.setattr(outage, "HURRIED", outage.SHORT)
    small = {"train_per_class": 5, "epochs": 1, "benchmark_runs": 0, "int8": "off", "promote_to": "none"}
    with monkeypatch.context() as patch:
        note_start(patch, "link", {}, store.begin)
        with pytest.raises(TrackingError, match=LOST):
            train("toy", **small)
    store.end()
    check_synced("toy", alias=())


@pytest.mark.parametrize("store", ["hanging"], indirect=True)
@pytest.mark.parametrize("fault", ["503", "refuse"])
def test_a_server_that_fails_for_a_moment_costs_a_release_seconds_and_it_is_registered_once(store, fault, monkeypatch):
    def fail():
        store.proxy.fault = fault
        threading.Timer(2.0, store.end).start()

    small = {"train_per_class": 5, "epochs": 1, "benchmark_runs": 0, "int8": "off", "promote_to": "none"}
    note_start(monkeypatch, "link" if fault == "503" else "register", {}, fail)
    assert train(f"met {fault}", **small).version == 1
    assert len(Registry(f"met {fault}").list()) == 1


def test_requests_fail_within_seconds_once_a_store_that_is_watched_has_not_answered_for_long(store, monkeypatch):
    monkeypatch.setattr(outage, "AWAY_SECONDS", 0.5)
    monkeypatch.setattr(outage, "ANSWER_SECONDS", 0.5)
    before = limits()
    with outage.hurried():
        assert limits() == outage.HURRIED
    assert limits() == before
    with pytest.raises(KeyError), outage.hurried():
        store.begin()
        deadline = time.monotonic() + 60
        while limits() != outage.SHORT and time.monotonic() < deadline:
            time.sleep(0.1)
        outage.expect_answers()  # a run below begins
        assert limits() == outage.SHORT
        raise KeyError
    assert limits() == outage.SHORT, "also for what ends the run"
    outage.expect_answers()
    assert limits() == before


def limits():
    return {name: os.environ.get(name) for name in outage.SHORT}


def check_synced(name, num_versions=1, alias=("champion",)):
    """Sync delivers what every run has left, and makes the release once."""
    left = sorted(path.parent.name for path in Path("runs").glob("*/journal"))
    for run_id in left:
        if (Path("runs") / run_id / "journal").is_dir():  # the run before has not delivered it
            pipeline.sync(run_id, "runs")
        assert mlflow.get_run(run_id).info.status in ("FINISHED", "FAILED")
        assert compare_logs(run_id).differences == ()
    query = f"params.`config.model_name` = '{name}'"
    (done,) = mlflow.search_runs(search_all_experiments=True, filter_string=query, output_format="list")
    assert done.info.run_id in left and done.info.status == "FINISHED"
    versions = Registry(name).list()
    assert len(versions) == num_versions
    assert versions[0].aliases == alias, "of the newest"
    query = f"tags.{MODEL_TAG} = '{name}'"
    stored = mlflow.MlflowClient().search_logged_models([done.info.experiment_id], filter_string=query)
    assert len(stored) == num_versions, "the doctor would register another"
    assert not list(Path("runs").glob("*/journal"))
