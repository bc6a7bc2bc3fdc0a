"""A run is written by one process: a lock that goes with it, which `--resume` asks."""

import contextlib
import os
import re
import subprocess
import sys

import pytest
from support.project import ROOT

from vitcifar import tracking
from vitcifar.errors import TrackingError, TrainingError
from vitcifar.lock import check_free, holder, locked
from vitcifar.training.resume import choose, obstacle

HOLD = """
import sys, time
from pathlib import Path
from vitcifar.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def training(folder):
    """Another process that holds the lock of a run's folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def runs(tmp_path):
    """The folders of three runs with a checkpoint, the newest last."""
    for number, name in enumerate(("first", "second", "third")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pt").touch()
        os.utime(tmp_path / name / "last.pt", (number, number))
    return tmp_path


def test_a_run_that_another_process_trains_is_not_resumed_until_that_is_gone(runs, monkeypatch):
    with training(runs / "third") as process:
        refused = (
            rf"Run third is still training, in process {process.pid} on .+: wait until it ends, or end that process"
        )
        for refusing in (
            lambda: choose(runs, "third", lambda run_id: None),
            lambda: locked(runs / "third").__enter__(),
            lambda: check_free(runs / "third"),
        ):
            with pytest.raises(TrackingError, match=refused):
                refusing()
        started = []
        monkeypatch.setattr(tracking.mlflow, "start_run", lambda **given: started.append(given))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///unused.db")
        with (
            pytest.raises(TrackingError, match=refused),
            tracking.start_run(experiment="x", output_dir=runs, run_id="third"),
        ):
            pass
        assert not started, "the store was not told that the run goes on"
    assert choose(runs, "third", lambda run_id: None) == runs / "third", "SIGKILL releases the lock"
    with locked(runs / "third"):
        with pytest.raises(TrackingError, match=f"in process {os.getpid()}, this one"), locked(runs / "third"):
            pass
        assert holder(runs / "third"), "asking has not released it"
        child = (
            "import sys; from pathlib import Path; from vitcifar.lock import holder; print(holder(Path(sys.argv[1])))"
        )
        asked = subprocess.run([sys.executable, "-c", child, runs / "third"], cwd=ROOT, capture_output=True, text=True)
        assert asked.stdout.startswith(f"process {os.getpid()} on ")
    assert holder(runs / "third") is None


def test_a_forked_child_does_not_keep_the_lock(runs):
    """As a loader worker that hangs while its run is killed."""
    read, write = os.pipe()
    with locked(runs / "first"):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the parent closes it
            os._exit(0)
    other = "import sys; from pathlib import Path; from vitcifar.lock import holder; print(holder(Path(sys.argv[1])))"
    asked = subprocess.run([sys.executable, "-c", other, runs / "first"], cwd=ROOT, capture_output=True, text=True)
    os.close(write)
    os.waitpid(child, 0)
    os.close(read)
    assert asked.stdout == "None\n"


def test_last_is_the_newest_run_that_can_go_on_and_says_so(runs, capsys):
    finished = {"second": "has finished (vitcifar 3)"}
    with training(runs / "third") as process:
        assert choose(runs, "last", finished.get) == runs / "first"
        said = capsys.readouterr().err
        assert said.startswith(
            "The newest run that can go on is first. Newer ones cannot: third is still training, in "
        )
        assert str(process.pid) in said and "second has finished (vitcifar 3)" in said
        with pytest.raises(
            TrainingError, match=r"No run under .+ can be resumed \(third is still training.+, first has finished"
        ):
            choose(runs, "last", lambda run_id: "has finished (no version)")
    assert choose(runs, "last", finished.get) == runs / "third"
    assert capsys.readouterr().err == "The newest run that can go on is third.\n"


def test_the_store_says_which_runs_have_finished(folder, monkeypatch):
    monkeypatch.chdir(folder)
    tracking.connect(f"sqlite:///{folder}/mlflow.db")
    with tracking.start_run(experiment="tests", output_dir=folder / "runs") as run:
        assert obstacle(run.run_id) is None
        assert holder(folder / "runs" / run.run_id)
    assert obstacle(run.run_id) == "has finished (no version)"
    assert holder(folder / "runs" / run.run_id) is None
    assert re.match("is not in this store", obstacle("0" * 32))
    tracking.mlflow.set_tracking_uri(None)
