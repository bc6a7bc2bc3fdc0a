"""Reproducible runs through the real `vitcifar` command: one seed twice, killed and resumed, on two processes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.commands import PLAIN, ROOT, client_of, environment, options, vitcifar
from support.toys import settle

from vitcifar.cli import main
from vitcifar.experiments.logs import compare_logs


def losses_of(workspace: Path, run_id: str) -> list[tuple[int, float]]:
    history = client_of(workspace).get_metric_history(run_id, "step/loss")
    return [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.step)]


SHORT = options({**PLAIN, "epochs": "1", "verbose": "yes"})


@pytest.fixture(scope="module")
def short_run(tmp_path_factory, new_store):
    """A workspace with one short run, and the output of its command."""
    workspace = tmp_path_factory.mktemp("short")
    shutil.copy(new_store, workspace)
    done = vitcifar(workspace, "train", *SHORT, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return workspace, done.stdout


def printed_run(stdout: str) -> str:
    return re.search(r"^run +(\w{32})", stdout, flags=re.MULTILINE)[1]


@pytest.mark.slow
def test_two_runs_with_one_seed_have_the_same_weights(short_run):
    workspace, first = short_run
    again = vitcifar(workspace, "train", *SHORT, OMP_NUM_THREADS="1")
    assert again.returncode == 0, again.stderr
    assert printed_run(again.stdout) != printed_run(first)
    digests = [re.search(r"sha256 (\w{64})", text)[1] for text in (first, again.stdout)]
    assert digests[0] == digests[1]


STOPPED = """
import os, signal
from vitcifar.cli import main
from vitcifar.training import loop

real, calls = loop.sum_gradients, []

def sum_gradients(weights):
    calls.append(real(weights))
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGTERM)

loop.sum_gradients = sum_gradients
main()
"""


def test_a_run_that_was_killed_then_stopped_amid_an_epoch_equals_an_uninterrupted_one(folder, own_graph, monkeypatch):
    settings = options({**PLAIN, "epochs": "3", "verbose": "yes"})
    monkeypatch.chdir(folder)
    settle(folder, monkeypatch)
    uninterrupted = CliRunner().invoke(main, ["train", *settings])
    assert uninterrupted.exit_code == 0, uninterrupted.stderr
    earlier = set(os.listdir(folder / "runs"))
    command = [sys.executable, "-m", "mlproject", "train", *settings]
    started = subprocess.Popen(command, cwd=folder, env=environment(folder, PYTHONPATH=str(ROOT)))
    while len(list(folder.glob("runs/*/last.pt"))) < 2:
        assert started.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    (run_id,) = set(os.listdir(folder / "runs")) - earlier
    rejected = CliRunner().invoke(main, ["train", "--resume", run_id, "--learning-rate", "0.5"])
    assert rejected.exit_code == 1 and "learning_rate" in rejected.stderr
    command = [sys.executable, "-c", STOPPED, "train", "--resume", "last"]
    environs = environment(folder, PYTHONPATH=str(ROOT))
    stopped = subprocess.run(command, cwd=folder, env=environs, capture_output=True, text=True)
    (step,) = re.findall(r"Step (\d+) is saved: vitcifar train --resume last goes on from there\.", stopped.stderr)
    assert stopped.returncode == 143 and stopped.stderr.endswith("Stopped by SIGTERM.\n"), stopped.stderr
    assert client_of(folder).get_run(run_id).info.status == "KILLED"
    assert losses_of(folder, run_id)[-1][0] == int(step), "every step that is not repeated was logged"
    resumed = CliRunner().invoke(main, ["train", "--resume", "last", "--verbose", "yes"])
    assert resumed.exit_code == 0, resumed.stderr
    assert re.search(r"sha256 \w{64}", resumed.stdout)[0] == re.search(r"sha256 \w{64}", uninterrupted.stdout)[0]
    assert run_id in resumed.stdout  # the same run continues
    assert compare_logs(run_id).differences == ()
    losses = [losses_of(folder, run) for run in (run_id, printed_run(uninterrupted.stdout))]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 15


@pytest.mark.slow
def test_two_processes_make_one_run_with_the_losses_of_one_process(short_run):
    """Within 1e-5: the order of the sums differs."""
    workspace, first = short_run
    before = len(client_of(workspace).search_runs(["0"]))
    done = vitcifar(workspace, "train", *SHORT, "--num-processes", "2", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    losses = [[loss for _, loss in losses_of(workspace, printed_run(text))] for text in (first, done.stdout)]
    assert len(losses[0]) == len(losses[1]) > 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(client_of(workspace).search_runs(["0"])) == before + 1
