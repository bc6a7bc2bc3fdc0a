"""A small training run that tests share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vitcifar.data.dataset import ImageDataset
from vitcifar.model.network import build_network
from vitcifar.presets import resolve
from vitcifar.training.loop import fit

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from support.training import settings, train

def log(step, metrics):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

train(Path(sys.argv[1]), settings(**eval(sys.argv[3])), log=log)
"""


CLASSES = ("dark", "middle", "bright")


def shades(per_class: int, seed: int = 0, size: int = 8) -> ImageDataset:
    """Images of three separable classes: noise around three shades of grey."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    images = random.integers(0, 80, (len(labels), size, size, 3)) + labels[:, None, None, None] * 80
    ids = tuple(f"{seed}-{index}" for index in range(len(labels)))
    return ImageDataset(images=images.astype(np.uint8), labels=labels.astype(np.int64), class_names=CLASSES, ids=ids)


def settings(**given):
    return resolve("digits", **{"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu", **given})


class Logged(dict):
    """Remembers every value by (name, step)."""

    def __call__(self, step, metrics):
        for name, value in metrics.items():
            assert (name, step) not in self, f"{name} logged twice at step {step}"
            self[name, step] = value


def train(folder: Path, config=None, *, resume=None, log=None, dataset=None):
    config = config or settings()
    network = build_network(config, CLASSES)
    data = dataset or shades(8)
    outcome = fit(
        network, data, shades(4, seed=1), config, log=Logged() if log is None else log, folder=folder, resume=resume
    )
    return network, outcome


def losses(tmp_path, **given) -> dict[tuple[str, int], float]:
    log = Logged()
    train(tmp_path, settings(**given), log=log)
    return {key: value for key, value in log.items() if key[0] in ("step/loss", "validation/loss")}


def assert_same_losses(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value == pytest.approx(second[key], abs=1e-5), key


def kill_at(step: int, folder: Path, **given) -> None:
    """Train in another process that is killed with SIGKILL when it logs `step`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(folder), str(step), repr(given)]
    done = subprocess.run(command, cwd=root, env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
