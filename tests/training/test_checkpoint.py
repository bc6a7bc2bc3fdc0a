"""Checkpoints: complete at every moment, and resumed only by a run of the same identity."""

import contextlib
import dataclasses
import io
import json
import pickle
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
from support.project import ROOT
from support.training import settings, shades, train

from vitcifar.errors import TrainingError, VitCifarError
from vitcifar.training import checkpoint
from vitcifar.training.resume import resumed_config


def test_resuming_with_another_setting_names_it_and_the_option_to_type(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match=r"made with learning_rate 0.001, not 0.01: type --learning-rate 0.001"):
        train(tmp_path, settings(learning_rate=0.01), resume=tmp_path / checkpoint.LAST)


def test_resuming_with_other_images_fails(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match="other images"):
        train(tmp_path, resume=tmp_path / checkpoint.LAST, dataset=shades(8, seed=9))


class Harm:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def saved(content):
    """What torch.save writes of it, without a digest."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of three epochs; tests change copies of it."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    train(folder)
    return folder


def copied(folder, tmp_path):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    return copy


@pytest.mark.parametrize("name", [checkpoint.LAST, checkpoint.BEST])
def test_a_file_that_is_no_checkpoint_is_one_sentence_and_nothing_in_it_runs(trained, tmp_path, name):
    folder = copied(trained, tmp_path)
    whole, harmed = (folder / name).read_bytes(), tmp_path / "harmed"
    for content, message in [
        (b"", "is empty"),
        (b"some text", "is a text file"),
        (whole[: len(whole) // 2], "cut off"),
        (whole[:-9], "cut off"),
        (whole[100:], "."),
        (saved([1, 2]), "holds a list"),
        (saved(None), "holds a NoneType"),
        (saved({"weights": {}}), "holds a dictionary without a digest"),
        (saved({"state": Harm(harmed)}), "code from a file is never run"),
        (pickle.dumps(Harm(harmed)), "code from a file is never run|cannot be read"),
    ]:
        (folder / name).write_bytes(content)
        with pytest.raises(TrainingError, match=f"{name}.*{message}.*: train without --resume") as raised:
            train(folder, resume=folder / checkpoint.LAST)
        assert "\n" not in str(raised.value)
    assert not harmed.exists()


def test_any_changed_byte_is_found(trained, tmp_path):
    whole, chance = (trained / checkpoint.BEST).read_bytes(), random.Random(0)
    path = tmp_path / "x.pt"
    for index in [*(chance.randrange(len(whole)) for _ in range(150)), *range(len(whole) - 100, len(whole))]:
        path.write_bytes(whole[:index] + bytes([whole[index] ^ (1 << chance.randrange(8))]) + whole[index + 1 :])
        with pytest.raises(TrainingError, match="train without --resume"):
            checkpoint.load(path)
    assert (
        torch.load(trained / checkpoint.BEST, weights_only=True)["epoch"]
        == checkpoint.load(trained / "best.pt")["epoch"]
    )


def test_a_checkpoint_of_another_run_or_epoch_is_refused(trained, tmp_path):
    train(other := tmp_path / "other")
    for name in (checkpoint.LAST, checkpoint.BEST):
        folder = copied(trained, tmp_path / f"with {name}")
        shutil.copy(other / name, folder)
        with pytest.raises(TrainingError, match=rf"{name} is of run other: put back that of this run"):
            train(folder, resume=folder / checkpoint.LAST)
    folder = copied(trained, tmp_path)
    checkpoint.save({**checkpoint.load(folder / "best.pt"), "epoch": 1}, folder / "best.pt")
    with pytest.raises(TrainingError, match="is of epoch 1 and not of the run's best, 3"):
        train(folder, resume=folder / checkpoint.LAST)


def changed(state, name):
    """A complete checkpoint whose digest is right, and one thing in it wrong."""
    weight = next(key for key, tensor in state["weights"].items() if tensor.ndim == 2)
    progress, moments = state["state"], state["optimizer"]["state"]
    return {
        "no progress": {key: value for key, value in state.items() if key != "state"},
        "no step": {**state, "state": {key: value for key, value in progress.items() if key != "step"}},
        "text": {**state, "state": {**progress, "epoch": "1"}},
        "negative": {**state, "state": {**progress, "step": -1}},
        "metrics": {**state, "state": {**progress, "best_metrics": None}},
        "identity": {**state, "identity": "mine"},
        "weights": {**state, "weights": None},
        "missing weight": {**state, "weights": {k: v for k, v in state["weights"].items() if k != weight}},
        "shape": {**state, "weights": {**state["weights"], weight: torch.zeros(1, 1)}},
        "type": {**state, "weights": {**state["weights"], weight: state["weights"][weight].double()}},
        "optimizer": {**state, "optimizer": []},
        "moments": {
            **state,
            "optimizer": {
                **state["optimizer"],
                "state": {k: {**v, "exp_avg": torch.ones(3)} for k, v in moments.items()},
            },
        },
        "scaler": {key: value for key, value in state.items() if key != "scaler"},
    }[name]


CHANGES = "no progress, no step, text, negative, metrics, identity, weights, missing weight, shape, type, optimizer, "


@pytest.mark.parametrize("name", f"{CHANGES}moments, scaler".split(", "))
def test_a_checkpoint_with_something_missing_or_of_another_shape_is_one_sentence(stopped, tmp_path, name):
    folder = copied(stopped, tmp_path)
    path = folder / checkpoint.LAST
    checkpoint.save(changed(checkpoint.load(path), name), path)
    with pytest.raises(TrainingError, match="train without --resume") as raised:
        train(folder, resume=path)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that ended in its second epoch."""

    def log(step, metrics):
        if step == 5:
            raise InterruptedError

    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with contextlib.suppress(InterruptedError):
        train(folder, log=log)
    return folder


def test_best_weights_that_were_saved_just_before_a_kill_count(stopped, tmp_path, monkeypatch):
    """Killed between the two files of an epoch, the run goes on from the epoch before it."""
    folder = copied(stopped, tmp_path)
    real = checkpoint.save

    def die(state, path):
        if path.name == checkpoint.LAST:
            raise InterruptedError
        real(state, path)

    monkeypatch.setattr(checkpoint, "save", die)
    with contextlib.suppress(InterruptedError):
        train(folder, resume=folder / checkpoint.LAST)
    monkeypatch.undo()
    epochs = [checkpoint.load(folder / name) for name in (checkpoint.LAST, checkpoint.BEST)]
    assert (epochs[0]["state"]["epoch"], epochs[1]["epoch"]) == (1, 2)
    (folder / (checkpoint.LAST + checkpoint.PARTIAL)).write_bytes(b"half")
    _, outcome = train(folder, resume=folder / checkpoint.LAST)
    assert outcome.best_epoch == 3
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "last.pt"], "no temporary file is left"


def test_damaged_settings_of_a_run_are_one_sentence(tmp_path):
    config = settings(epochs=2)
    folder = tmp_path / "run"
    folder.mkdir()
    whole = json.dumps(dataclasses.asdict(config)).encode()
    options, chance = {"output_dir": str(tmp_path), "resume": "last", "epochs": 2}, random.Random(0)
    (folder / "config.json").write_bytes(whole)
    assert resumed_config(folder, options).epochs == 2
    older = {name: value for name, value in json.loads(whole).items() if name not in ("cutmix", "analysis", "ood")}
    (folder / "config.json").write_text(json.dumps({**older, "examine": "full"}))
    assert resumed_config(folder, options).analysis == "full", "an older vitcifar had other names, and fewer settings"
    for content in (b"", b"[]", b"[" * 10**5, b'{"epochs": 1e999}', b"\xff", b'{"picture": 1}', b'{"epochs": null}'):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(VitCifarError, match=r"The settings in .*config.json (cannot be read \(.+\)|are not valid)"):
            resumed_config(folder, options)
    for _ in range(300):
        index = chance.randrange(len(whole))
        content = whole[:index] + chance.randbytes(chance.randrange(3)) + whole[index + chance.randrange(3) :]
        (folder / "config.json").write_bytes(content)
        with contextlib.suppress(VitCifarError):
            resumed_config(folder, options)


WRITER = """
import sys, torch
from pathlib import Path
from vitcifar.training import checkpoint
weights = torch.zeros(300_000)
for number in range(10**6):
    checkpoint.save({"number": number, "weights": weights.fill_(number)}, Path(sys.argv[1]))
    print(number, flush=True)
"""


@pytest.mark.parametrize(
    "delays", [1, pytest.param(20, marks=pytest.mark.slow)], ids=lambda number: f"{number} random delays"
)
def test_a_checkpoint_is_complete_whenever_its_writer_is_killed(tmp_path, delays):
    path, chance = tmp_path / "last.pt", random.Random(delays)
    for _ in range(delays):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        written = int(writer.stdout.readline())
        time.sleep(chance.random() * 0.3)
        writer.kill()
        written = int(([written, *writer.stdout.read().split()])[-1])
        writer.wait()
        state = checkpoint.load(path)
        assert state["number"] in (written, written + 1), "the newest complete one"
        assert torch.equal(
            torch.load(path, weights_only=True)["weights"], torch.full((300_000,), float(state["number"]))
        )


def test_a_full_disk_leaves_the_checkpoint_before_it_complete(tmp_path):
    """In a process whose files cannot grow beyond 600 kB."""
    script = """
import resource, signal, sys, torch
from pathlib import Path
from vitcifar.errors import TrainingError
from vitcifar.training import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
checkpoint.save({"weights": torch.ones(100)}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
try:
    checkpoint.save({"weights": torch.ones(300_000)}, path)
except TrainingError as error:
    print(error)
"""
    path = tmp_path / "last.pt"
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"The checkpoint {path} could not be written (File too large), and the one before")
    assert checkpoint.load(path)["weights"].sum() == 100
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
