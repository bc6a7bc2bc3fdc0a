"""Checkpoints: complete at every moment, and resumed only by a run of the same identity."""

import contextlib
import dataclasses
import json
import random
import subprocess
import sys
import time

import pytest
import torch
from support.project import ROOT
from support.training import settings, shades, train

from vitcifar.errors import TrainingError, VitCifarError
from vitcifar.training import checkpoint


def test_resuming_with_another_setting_names_it_and_the_option_to_type(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match=r"made with learning_rate 0.001, not 0.01: type --learning-rate 0.001"):
        train(tmp_path, settings(learning_rate=0.01), resume=tmp_path / checkpoint.LAST)


def test_resuming_with_other_images_or_a_broken_checkpoint_fails(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match="other images"):
        train(tmp_path, resume=tmp_path / checkpoint.LAST, dataset=shades(8, seed=9))
    whole = (tmp_path / checkpoint.LAST).read_bytes()
    torch.save({"weights": {}}, tmp_path / "other.pt")
    for content, message in [
        (whole[:-9], "damaged or cut off"),
        (whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], "the checksum of .* is wrong"),
        ((tmp_path / "other.pt").read_bytes(), "is not a checkpoint of vitcifar"),
    ]:
        (tmp_path / checkpoint.LAST).write_bytes(content)
        with pytest.raises(TrainingError, match=f"{message}.*: train without --resume"):
            train(tmp_path, resume=tmp_path / checkpoint.LAST)


def test_damaged_settings_of_a_run_are_one_sentence(tmp_path):
    config = settings(epochs=2)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / checkpoint.LAST).touch()
    whole = json.dumps(dataclasses.asdict(config)).encode()
    options, chance = {"output_dir": str(tmp_path), "resume": "last", "epochs": 2}, random.Random(0)
    (folder / "config.json").write_bytes(whole)
    assert checkpoint.resumed_config(options).epochs == 2
    for content in (b"", b"[]", b"[" * 10**5, b'{"epochs": 1e999}', b"\xff"):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(VitCifarError, match=r"The settings in .*config.json cannot be read \(.+\)|expected int"):
            checkpoint.resumed_config(options)
    for _ in range(300):
        index = chance.randrange(len(whole))
        content = whole[:index] + chance.randbytes(chance.randrange(3)) + whole[index + chance.randrange(3) :]
        (folder / "config.json").write_bytes(content)
        with contextlib.suppress(VitCifarError):
            checkpoint.resumed_config(options)


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
