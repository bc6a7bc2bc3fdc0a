"""Ctrl-C, SIGTERM and SIGHUP end a run as KILLED, however many of them arrive, and whenever."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from support.commands import PLAIN, ROOT, environment, options

from vitcifar import signals, tracking
from vitcifar.errors import TrackingError


@pytest.fixture
def installed():
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for number in signals.SIGNALS:
        signal.signal(number, signal.default_int_handler)  # a shell in the background ignores SIGINT
    signals.install()
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number, times=5):
    for _ in range(times):
        os.kill(os.getpid(), number)


@pytest.fixture
def start(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    tracking.connect()
    yield lambda: tracking.start_run(experiment="tests", output_dir=Path("runs"))
    mlflow.set_tracking_uri(None)


def statuses(folder):
    with sqlite3.connect(folder / "mlflow.db") as store:
        return [status for (status,) in store.execute("select status from runs")]


def test_each_signal_kills_a_run_with_its_own_exit_code(installed, start, folder):
    codes = []
    for number in signals.SIGNALS:
        signals.install()
        with pytest.raises(signals.Stopped) as stopped, start():
            send(number)
        codes.append(stopped.value.exit_code)
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert codes == [130, 143, 129]
    assert statuses(folder) == ["KILLED"] * 3


@pytest.mark.parametrize("name", ["start_run", "end_run"])
def test_a_signal_while_mlflow_starts_or_ends_a_run_leaves_no_run_running(installed, start, folder, monkeypatch, name):
    real = getattr(mlflow, name)

    def interrupted(*args, **kwargs):
        send(signal.SIGINT)
        try:
            return real(*args, **kwargs)
        finally:
            send(signal.SIGTERM)

    monkeypatch.setattr(mlflow, name, interrupted)
    with pytest.raises(signals.Stopped), start():
        pass
    assert statuses(folder) == ["KILLED" if name == "start_run" else "FINISHED"]


def test_a_block_that_hangs_can_be_stopped(installed, monkeypatch):
    monkeypatch.setattr(signals, "HELD_SECONDS", 0.05)
    with pytest.raises(signals.Stopped), signals.held():
        send(signal.SIGINT, times=1)
        time.sleep(0.1)
        send(signal.SIGINT, times=1)
        pytest.fail("the second signal was held as well")


def test_a_signal_during_a_write_that_fails_is_not_lost(installed):
    with pytest.raises(signals.Stopped), contextlib.suppress(OSError), signals.held():
        send(signal.SIGINT, times=1)
        raise OSError


def test_a_signal_that_was_swallowed_stops_the_command_later(installed, monkeypatch):
    monkeypatch.setattr(signals, "QUIET_SECONDS", 0.05)
    with contextlib.suppress(signals.Stopped):
        send(signal.SIGTERM)
    with pytest.raises(signals.Stopped, match="SIGTERM"):
        time.sleep(5)


def test_a_write_to_mlflow_is_completed_before_a_signal_stops_the_command(installed, start, folder):
    """An exception amid a write leaves SQLite locked, and then the run cannot be ended."""
    with pytest.raises(signals.Stopped), start() as run:
        add = run.journal.add
        run.journal.add = lambda *args, **given: (send(signal.SIGINT), add(*args, **given))
        run.log(1, {"train/loss": 0.5})
    assert run.client.get_run(run.run_id).data.metrics == {"train/loss": 0.5}
    assert statuses(folder) == ["KILLED"]


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye"), RecursionError(), MemoryError(), GeneratorExit()])
def test_whatever_ends_a_run_before_its_end_leaves_it_failed(start, folder, error):
    expected = TrackingError if isinstance(error, SystemExit) else type(error)
    with pytest.raises(expected) as raised, start():
        raise error
    assert statuses(folder) == ["FAILED"]
    if expected is TrackingError:  # and so the command ends with exit code 1
        assert f"by sys.exit({error.code!r})" in str(raised.value)


def test_an_ignored_signal_stays_ignored(installed):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    signals.install()
    with signals.held():
        send(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_five_times_ctrl_c_in_a_tenth_of_a_second_end_training_without_a_traceback(folder):
    command = [sys.executable, "-m", "mlproject", "train", *options({**PLAIN, "epochs": "200"})]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder, PYTHONPATH=str(ROOT)),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not list(folder.glob("runs/*/best.pt")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and stderr.endswith("Stopped by SIGINT.\n")
    assert statuses(folder) == ["KILLED"]
