"""A run that a signal stops amid an epoch goes on from its last complete step, bit for bit."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.project import ROOT
from support.training import Logged, settings, train

from vitcifar import signals
from vitcifar.errors import TrainingError
from vitcifar.model.network import weights_sha256
from vitcifar.run import SYSTEM_PREFIX
from vitcifar.training import checkpoint, loop
from vitcifar.training.state import TrainState


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signals.install()
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def decided(*logs):
    """What the settings decide, of a run that was logged in parts; no point may be logged twice."""
    points = [(key, value) for log in logs for key, value in log.items() if not key[0].startswith(SYSTEM_PREFIX)]
    assert len(points) == len(dict(points))
    return dict(points)


def stop_in(monkeypatch, function, call):
    """Send SIGTERM when a function of the loop is called for the `call`-th time."""
    real, calls = getattr(loop, function), []

    def stopping(*args):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(loop, function, stopping)


def stopped(monkeypatch, folder, config, function, call):
    """The points of a run that is stopped there."""
    log = Logged()
    with monkeypatch.context() as patch, pytest.raises(signals.Stopped):
        signals.install()
        stop_in(patch, function, call)
        train(folder, config, log=log)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return log


def saving(monkeypatch, step, act):
    """Do something else while the checkpoint of a step is written."""
    real = torch.save

    def save(state, file):
        if state.get("state", {}).get("step") == step:
            act()
        real(state, file)

    monkeypatch.setattr(torch, "save", save)


ALL = {"head_epochs": 1, "ema_decay": 0.9, "optimizer": "adamw", "mixup": 0.2, "augmentation": "crop-flip"}


LORA = {"num_workers": 2, "lora_rank": 2, "train_layers": "2"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The network, result and points of a run with these settings, made once."""
    made = {}

    def make(**given):
        if (key := repr(given)) not in made:
            log = Logged()
            made[key] = (*train(tmp_path_factory.mktemp("run"), settings(**given), log=log), log)
        return made[key]

    return make


@pytest.mark.parametrize(
    ("given", "function", "call", "step"),
    [
        ({}, "sum_gradients", 2, 1),  # in the first epoch: there is no best one yet
        ({}, "update_weights", 5, 5),  # amid a change of weights: it is completed
        pytest.param(ALL, "sum_gradients", 8, 7, marks=pytest.mark.slow),
        (ALL, "sum_gradients", 5, 4),  # in the first epoch of the second stage
        pytest.param(ALL, "validate", 3, 6, marks=pytest.mark.slow),  # of the weights
        (ALL, "validate", 4, 6),  # of their average, which they hold then
        pytest.param(LORA, "sum_gradients", 5, 4, marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_at_any_place_goes_on_from_its_last_step(
    tmp_path, monkeypatch, uninterrupted, given, function, call, step
):
    network, outcome, whole = uninterrupted(**given)
    after = Logged()
    before = stopped(monkeypatch, tmp_path / "stopped", settings(**given), function, call)
    path = tmp_path / "stopped" / checkpoint.LAST
    assert checkpoint.load(path)["state"]["step"] == step == max(step for _, step in before)
    resumed, same_outcome = train(tmp_path / "stopped", settings(**given), resume=path, log=after)
    assert weights_sha256(resumed) == weights_sha256(network)
    assert decided(before, after) == decided(whole)
    assert same_outcome == outcome


def test_a_run_that_is_stopped_twice_in_one_epoch_goes_on(tmp_path, monkeypatch, capsys, uninterrupted):
    network, *_ = uninterrupted()
    stopped(monkeypatch, tmp_path / "stopped", settings(), "sum_gradients", 5)
    path = tmp_path / "stopped" / checkpoint.LAST
    with monkeypatch.context() as patch, pytest.raises(signals.Stopped):
        signals.install()
        stop_in(patch, "sum_gradients", 2)
        train(tmp_path / "stopped", resume=path)
    steps = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Step")]
    assert steps == [f"Step {n} is saved: vitcifar train --resume last goes on from there." for n in (4, 5)]
    assert weights_sha256(train(tmp_path / "stopped", resume=path)[0]) == weights_sha256(network)


def test_a_second_signal_ends_the_save_and_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "QUIET_SECONDS", 0.05)

    def slowly():
        time.sleep(0.2)  # it takes its time: no second signal comes by itself
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second signal was ignored")

    saving(monkeypatch, 4, slowly)
    stopped(monkeypatch, tmp_path, settings(), "sum_gradients", 5)
    assert checkpoint.load(tmp_path / checkpoint.LAST)["state"]["step"] == 3
    assert not list(tmp_path.glob(f"*{checkpoint.PARTIAL}"))


def test_a_disk_that_is_full_then_is_one_line_and_the_run_is_stopped_all_the_same(tmp_path, monkeypatch, capsys):
    def full():
        raise OSError(28, "No space left on device")

    saving(monkeypatch, 4, full)
    stopped(monkeypatch, tmp_path, settings(), "sum_gradients", 5)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Epoch ")]
    assert line.startswith(f"The checkpoint {tmp_path / checkpoint.LAST} could not be written (No space left")
    assert checkpoint.load(tmp_path / checkpoint.LAST)["state"]["step"] == 3


def test_an_error_amid_a_step_saves_nothing(tmp_path, monkeypatch):
    """Weights and progress may be of different steps then."""

    def log(step, metrics):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, log=log)
    assert checkpoint.load(tmp_path / checkpoint.LAST)["state"]["step"] == 3


def test_progress_that_an_earlier_vitcifar_saved_is_read_and_steps_outside_of_the_epoch_are_refused(tmp_path):
    metrics = {"validation/accuracy": 0.5, "validation/loss": 0.7}
    state = TrainState(epoch=2, step=6, stage_epoch=2, stage_step=6, best_epoch=2, best_metrics=metrics)
    saved = dataclasses.asdict(state)
    older = {name: value for name, value in saved.items() if name not in ("loss_sum", "num_correct")}
    assert TrainState.restore({"state": older}, tmp_path, 3) == state
    for wrong in ({"step": 5}, {"step": 10}, {"stage_step": 3}, {"loss_sum": float("nan")}, {"num_correct": "1"}):
        with pytest.raises(TrainingError, match="impossible progress"):
            TrainState.restore({"state": saved | wrong}, tmp_path, 3)


TWO = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from support.training import Logged, settings, train
from vitcifar import signals
from vitcifar.model.network import weights_sha256
from vitcifar.training import distributed, loop

signals.install()
folder, stop = Path(sys.argv[1]), int(sys.argv[2])
real, log = loop.sum_gradients, Logged()

def sum_gradients(weights):
    real(weights)
    if os.environ["RANK"] == "0" and log.get(("step/loss", stop)):
        os.kill(os.getpid(), signal.SIGTERM)

loop.sum_gradients = sum_gradients
try:
    with distributed.spawn_workers(2), distributed.process_group():
        resume = folder / "last.pt"
        network, _ = train(folder, settings(optimizer="sgd"), log=log, resume=resume if resume.exists() else None)
except signals.Stopped as stopped:
    os._exit(stopped.exit_code)
values = [[name, step, value] for (name, step), value in log.items() if not name.startswith("system/")]
print(json.dumps([weights_sha256(network), values]))
"""


@pytest.mark.slow
def test_two_processes_of_which_rank_0_is_stopped_go_on_from_its_last_step(tmp_path):
    def run(folder, stop):
        command = [sys.executable, "-c", TWO, str(folder), str(stop)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == (143 if stop else 0), done.stderr
        return json.loads(done.stdout or "[]")

    sha256, uninterrupted = run(tmp_path / "uninterrupted", 0)
    run(tmp_path / "stopped", 4)
    assert checkpoint.load(tmp_path / "stopped" / checkpoint.LAST)["state"]["step"] == 4
    resumed, after = run(tmp_path / "stopped", 0)
    assert resumed == sha256
    assert after == [point for point in uninterrupted if point[1] > 4]
