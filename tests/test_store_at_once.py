"""Processes that start at once on a store that does not exist, are killed while they make it, or log at once."""

import json
import os
import subprocess
import sys

import mlflow
import pytest
from support.commands import ROOT, client_of

# Forks before MLflow has opened a store, so that vitcifar is imported once for all processes.
FORKS = """
import json, os, signal, sys, time
from pathlib import Path
from vitcifar import tracking

def child(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid

def codes(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

def start(folder):
    tracking.connect(f"sqlite:///{folder}/mlflow.db")
    import mlflow
    mlflow.MlflowClient().create_run("0")

def log(folder, number):
    tracking.connect(f"sqlite:///{folder}/mlflow.db")
    with tracking.start_run(experiment="at once", output_dir=Path(folder) / "runs", run_name=str(number)) as run:
        for step in range(1, 301):
            run.log(step, {"step/loss": number + 1 / step})
            if step % 20 == 0:
                run.log(step, {"train/loss": number + 1 / step})
        run.log_text("note.txt", str(number))

folder, result = sys.argv[2], {}
if sys.argv[1] == "starts":
    result = [codes([child(lambda: start(f"{folder}/{n}")) for _ in range(4)]) for n in range(int(sys.argv[3]))]
if sys.argv[1] == "kills":
    for delay in map(float, sys.argv[3:]):
        pid = child(lambda: start(f"{folder}/{delay}"))
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        result[delay] = codes([pid]) + codes([child(lambda: start(f"{folder}/{delay}"))])
if sys.argv[1] == "logs":
    result = codes([child(lambda n=n: log(folder, n)) for n in range(int(sys.argv[3]))])
print(json.dumps(result))
"""


def run(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-c", FORKS, words[0], str(folder), *map(str, words[1:])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_forty_of_forty_processes_start_on_a_store_that_does_not_exist(tmp_path):
    """Four at a time, on ten new stores."""
    assert run(tmp_path, "starts", 10) == [[0] * 4] * 10
    for number in range(10):
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/{number}/mlflow.db")
        assert len(client.search_runs(["0"])) == 4


@pytest.mark.slow
def test_whenever_a_process_is_killed_while_it_makes_a_store_the_next_one_starts(tmp_path):
    delays = [0.05, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 1.8, 2.2]
    ended = run(tmp_path, "kills", *delays)
    assert [second for _, second in ended.values()] == [0] * 10, ended
    assert sum(first == -9 for first, _ in ended.values()) > 2, "most were killed too late"


def test_two_runs_at_once_lose_no_point(folder):
    assert run(folder, "logs", 2) == [0, 0]
    client = client_of(folder)
    (experiment,) = [e for e in client.search_experiments() if e.name == "at once"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted((found.info.run_name, found.info.status) for found in runs) == [("0", "FINISHED"), ("1", "FINISHED")]
    for found in runs:
        points = client.get_metric_history(found.info.run_id, "step/loss")
        assert {(m.step, m.value) for m in points} == {(s, int(found.info.run_name) + 1 / s) for s in range(1, 301)}
        assert len(points) == 300 and len(client.get_metric_history(found.info.run_id, "train/loss")) == 15
