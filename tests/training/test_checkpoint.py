"""Checkpoints: complete at every moment, and resumed only by a run of the same identity."""

import subprocess
import sys
import time

import pytest
import torch
from support.project import ROOT
from support.training import settings, shades, train

from vitcifar.errors import TrainingError
from vitcifar.training import checkpoint


def test_resuming_with_another_setting_names_it_and_the_option_to_type(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match=r"made with learning_rate 0.001, not 0.01: type --learning-rate 0.001"):
        train(tmp_path, settings(learning_rate=0.01), resume=tmp_path / checkpoint.LAST)


def test_resuming_with_other_images_or_a_broken_checkpoint_fails(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match="other images"):
        train(tmp_path, resume=tmp_path / checkpoint.LAST, dataset=shades(8, seed=9))
    (tmp_path / checkpoint.LAST).write_bytes(b"cut off")
    with pytest.raises(TrainingError, match="cannot be read"):
        train(tmp_path, resume=tmp_path / checkpoint.LAST)


def test_a_checkpoint_is_complete_whenever_its_writer_is_killed(tmp_path):
    script = """
import sys, torch
from pathlib import Path
from vitcifar.training import checkpoint
for number in range(10**6):
    checkpoint.save({"number": number, "weights": torch.full((300_000,), float(number))}, Path(sys.argv[1]))
"""
    path = tmp_path / "last.pt"
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    writer.kill()
    writer.wait()
    state = checkpoint.load(path)
    assert torch.equal(state["weights"], torch.full((300_000,), float(state["number"])))
