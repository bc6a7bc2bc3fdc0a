"""Files of tensors: what is harmless is read, what is damaged or foreign is one sentence, no code runs."""

import argparse
import io
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from vitcifar.errors import TrainingError
from vitcifar.model.tensor_file import Ignored, load_file

STATE = {f"layers.{index}.weight": torch.full((3, 5), float(index)) for index in range(4)}


def saved(value: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def equal(state: dict) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.safetensors", "w"])
@pytest.mark.parametrize("content", [saved(STATE), saved(STATE, legacy=True), safetensors.torch.save(STATE)])
def test_the_content_decides_how_a_file_is_read_and_not_its_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert equal(load_file(tmp_path / name))


@pytest.mark.parametrize("legacy", [False, True])
def test_settings_and_numpys_numbers_beside_the_tensors_are_harmless_and_ignored(tmp_path, legacy):
    args = argparse.Namespace(lr=0.1, seed=np.int64(3), out=Path("runs"))
    value = {"model": STATE, "args": args, "best": np.float32(0.5), "history": np.arange(3)}
    (tmp_path / "w.pt").write_bytes(saved(value, legacy=legacy))
    loaded = load_file(tmp_path / "w.pt")
    assert equal(loaded["model"])
    assert {type(loaded[name]) for name in ("args", "best", "history")} == {Ignored}


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run_and_named(tmp_path, legacy):
    marker = str(tmp_path / "ran")
    for evil, named in [(Evil(os.mkdir, marker), "posix.mkdir"), (Evil(np.save, marker, 1), "numpy.save")]:
        (tmp_path / "w.pt").write_bytes(saved({"weight": evil}, legacy=legacy))
        with pytest.raises(TrainingError, match=f"holds an object of {named}, and code from a file is never run"):
            load_file(tmp_path / "w.pt")
    assert os.listdir(tmp_path) == ["w.pt"]


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: copy or download it again."),
        (POINTER, "is a git-lfs pointer, not the file that it stands for: type `git lfs pull` there."),
        (b"\n<!DOCTYPE html><html>...", "is a web page: download the file itself."),
        (b"\xef\xbb\xbf<html>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "is an XML file, as servers answer errors with"),
        (b"epoch,loss\n1,0.5\n", "is a text file"),
        (b"\x1f\x8b\x08\x00\x00", "is a gzip archive: unpack it first."),
        (archive(readme=b"hello"), r"cannot be read as tensors \(a zip archive, not of torch.save\)"),
        (archive(**{"x/data.pkl": b"", "x/constants.pkl": b""}), r"cannot be read as .* TorchScript, which is code"),
        (saved(STATE)[:-40], r"is damaged or cut off \(File is not a zip file\): copy or download it again."),
        (saved(STATE).replace(b"layers.2", b"layers.7"), r"is damaged or cut off \(the checksum of .*data.pkl is"),
        (saved(STATE, legacy=True)[:-9], r"cannot be read as tensors \(.*EOF.*\): copy or download it again, or save"),
        (safetensors.torch.save(STATE)[:-9], r"cannot be read as tensors \(.*file not fully covered"),
        (b"\x00\x01\x02\x03" * 50, r"cannot be read as tensors \(Unsupported operand 0\)"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_says_what_it_is_and_what_to_do(tmp_path, content, message):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=f"w.pt {message}") as caught:
        load_file(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match="do this"):
        load_file(tmp_path / "w.pt", cure="do this")


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content cut off, with bytes changed or inserted, most often near its ends, where the structure is."""
    data = bytearray(content)
    near = [chance.randrange(len(data)), chance.randrange(400), len(data) - 1 - chance.randrange(400)]
    match chance.choice(["cut", "change", "change", "insert"]):
        case "cut":
            del data[chance.choice(near) :]
        case "change":
            for _ in range(chance.choice([1, 2, 20])):
                data[(chance.choice(near) + chance.randrange(9)) % len(data)] = chance.randrange(256)
        case "insert":
            index = chance.choice(near)
            data[index:index] = chance.randbytes(chance.randrange(1, 9))
    return bytes(data)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_no_damage_ends_in_a_traceback(tmp_path, kind):
    value = {"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}
    whole = safetensors.torch.save(STATE) if kind == "safetensors" else saved(value, legacy=kind == "legacy")
    path, chance, num_read = tmp_path / "w.pt", random.Random(0), 0
    for _ in range(300):
        path.write_bytes(damaged(whole, chance))
        try:
            load_file(path)
            num_read += 1
        except TrainingError as error:
            assert str(error).startswith(f"{path} ") and "\n" not in str(error)
    assert num_read < (30 if kind == "zip" else 150)  # without checksums, changed numbers cannot be seen
