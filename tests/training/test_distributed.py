"""Data-parallel training gives the losses of one process, and rank 0 alone logs."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from support.project import ROOT
from support.training import Logged, settings, train

from vitcifar.training import distributed

SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests")
from support.training import Logged, settings, train
from vitcifar.model.network import weights_sha256
from vitcifar.training.distributed import process_group, rank

with process_group():
    log, folder = Logged(), Path(sys.argv[1])
    network, outcome = train(folder, settings(**json.loads(sys.argv[2])), log=log)
    values = [[name, step, value] for (name, step), value in log.items()]
    answer = {"values": values, "sha256": weights_sha256(network), "best_epoch": outcome.best_epoch}
    (folder / f"rank{rank()}.json").write_text(json.dumps(answer))
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_two(folder: Path, given: dict) -> list[dict]:
    """Start two ranks as torchrun does, without torchrun's start-up time."""
    folder.mkdir()
    port = str(free_port())
    ranks = []
    for rank in range(2):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "RANK": str(rank)}
        environment |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(given)]
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    for process in ranks:
        assert process.wait(timeout=120) == 0
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def decided(values: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """The metrics that do not depend on the machine."""
    return {key: value for key, value in values.items() if not key[0].startswith("system/")}


@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 5, "learning_rate": 1e-3, "mixup": 0.2, "augmentation": "crop-flip", "ema_decay": 0.9},
        pytest.param({"batch_size": 8, "learning_rate": 1e-2, "train_layers": "head"}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_losses_of_one_process(tmp_path, given):
    given["optimizer"] = "sgd"  # Adam turns a gradient of almost 0 into a full step, whichever its sign by rounding
    single = Logged()
    _, outcome = train(tmp_path / "single", settings(**given), log=single)
    first, second = run_two(tmp_path / "two", given)
    logged = {(name, step): value for name, step, value in first["values"]}
    assert logged.keys() == single.keys()
    for key, value in decided(single).items():
        assert logged[key] == pytest.approx(value, abs=1e-5), key
    assert second["values"] == [], "only rank 0 logs"
    assert first["sha256"] == second["sha256"]
    assert first["best_epoch"] == second["best_epoch"] == outcome.best_epoch


LOST = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path
sys.path.insert(0, "tests")
from support.training import settings, train
from vitcifar.errors import TrainingError
from vitcifar.training import distributed, loop

folder, fault, victim = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.TIMEOUT = timedelta(seconds=4)
is_victim = os.environ.get("RANK", "0") == victim
(folder / ("rank" + os.environ.get("RANK", "0"))).write_text(str(os.getpid()))
if fault == "early" and is_victim:
    sys.exit(3)
step = loop.train_step

def train_step(setup, stage, state, *rest):
    if is_victim and state.step == 2:
        if fault == "raise":
            raise ValueError("odd pixels")
        if fault == "exit":
            os._exit(4)
        os.kill(os.getpid(), getattr(signal, fault))
    return step(setup, stage, state, *rest)

loop.train_step = train_step
try:
    with distributed.spawn_workers(2), distributed.process_group():
        train(folder, settings())
except TrainingError as error:
    sys.exit(f"Error: {error}")
"""


@pytest.mark.parametrize(
    ("fault", "victim", "message"),
    [
        ("SIGKILL", 1, "Training process 1 was killed by SIGKILL"),
        pytest.param("SIGSTOP", 1, "does not answer within 4 s", marks=pytest.mark.slow),
        pytest.param("early", 1, "Training process 1 ended with exit code 3", marks=pytest.mark.slow),
        pytest.param("raise", 1, "Training process 1 ended with exit code 1: see its message", marks=pytest.mark.slow),
        pytest.param("exit", 1, "Training process 1 ended with exit code 4", marks=pytest.mark.slow),
        pytest.param("SIGKILL", 0, "", marks=pytest.mark.slow),
    ],
)
def test_a_training_process_that_dies_or_hangs_is_one_sentence_and_leaves_no_other(tmp_path, fault, victim, message):
    command = [sys.executable, "-c", LOST, str(tmp_path), fault, str(victim)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Epoch ")]
    assert done.returncode == (-9 if victim == 0 else 1), done.stderr
    deadline = time.monotonic() + 15
    for rank in (0, 1):  # rank 1 sees within a second that rank 0 was killed
        pid = int((tmp_path / f"rank{rank}").read_text())
        while psutil.pid_exists(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not psutil.pid_exists(pid)
    if victim == 1:
        *others, line = lines
        assert line.startswith("Error: ") and message in line
        assert fault == "raise" or not others, "what raised has told it"


@pytest.mark.parametrize("given", [{"RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "4"}])
def test_some_variables_of_a_launcher_launch_nothing(monkeypatch, given):
    for name in distributed.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (distributed.launched_processes(), distributed.is_worker()) == (1, False)
    with distributed.process_group():
        assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_two_nodes_of_torchrun_give_the_result_of_one_process(tmp_path):
    """Two launchers with a c10d rendezvous on loopback, as on two machines."""
    given = {"epochs": 1, "optimizer": "sgd"}
    single = Logged()
    train(tmp_path / "single", settings(**given), log=single)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    command += [str(script), str(tmp_path), json.dumps(given)]
    environment = {**os.environ, "PYTHONPATH": "."}
    nodes = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(2)]
    assert [node.wait(timeout=120) for node in nodes] == [0, 0]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    logged = {(name, step): value for name, step, value in first["values"]}
    assert decided(logged) == pytest.approx(decided(single), abs=1e-5)
    assert first["sha256"] == second["sha256"]
    assert not torch.distributed.is_initialized()
