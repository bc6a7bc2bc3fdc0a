"""Checkpoints: written atomically with a digest, resumed only by their run with its settings, images and start."""

import contextlib
import dataclasses
import hashlib
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vitcifar.config import TrainConfig, deciding_settings
from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import TrainingError, listed
from vitcifar.model.network import Classifier
from vitcifar.model.tensor_file import load_file
from vitcifar.training.distributed import rank

LAST = "last.pt"  # the state after the last complete epoch, or at the step at which a signal stopped training
BEST = "best.pt"  # the weights of the best epoch
PARTIAL = ".part"  # behind the name of one that is being written
SEAL = b"sha256:"  # and 64 hexadecimal digits: the comment at the end of the zip archive that torch.save writes
SEAL_BYTES = len(SEAL) + 64
CURE = "train without --resume"


class Sealing:
    """A binary file that torch.save writes to, and the sha256 of all that was written; keeps the first error."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None  # torch hides it behind "unexpected pos"

    def write(self, data: bytes) -> int:
        try:
            self.digest.update(data)
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()

    def seal(self) -> None:
        """Append the digest as the archive's comment, so that the file remains one of torch.save."""
        self.file.seek(-2, os.SEEK_END)  # the length of the comment, 0 until now
        self.file.write(struct.pack("<H", SEAL_BYTES) + SEAL + self.digest.hexdigest().encode())


def is_intact(path: Path) -> bool | None:
    """Whether a checkpoint has the digest that was written with it; None when it has no digest."""
    with path.open("rb") as file:
        remaining = os.fstat(file.fileno()).st_size - SEAL_BYTES
        file.seek(max(0, remaining))
        if remaining < 2 or not (seal := file.read()).startswith(SEAL):
            return None
        file.seek(0)
        digest = hashlib.sha256()
        while remaining > 2 and (chunk := file.read(min(2**20, remaining - 2))):
            digest.update(chunk)
            remaining -= len(chunk)
        digest.update(b"\0\0")  # where the length of the comment stands
        return file.read(2) == struct.pack("<H", SEAL_BYTES) and seal[len(SEAL) :] == digest.hexdigest().encode()


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, in rank 0 alone; killed at any moment, `path` holds the complete old or new one."""
    if rank() > 0:
        return
    partial = path.with_name(path.name + PARTIAL)
    sealing: Sealing | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w+b") as file:
            sealing = Sealing(file)
            torch.save(state, sealing)  # type: ignore[arg-type]  # it needs write and flush alone
            sealing.seal()
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = error if isinstance(error, OSError) else sealing and sealing.error
        told = reason.strerror if reason else error
        raise TrainingError(
            f"The checkpoint {path} could not be written ({told}), and the one before it is complete: free disk space, "
            "then type vitcifar train --resume last."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code from it; raises TrainingError when it is missing, damaged or foreign."""
    if not path.is_file():
        raise TrainingError(f"There is no checkpoint {path}: {CURE}.")
    try:
        intact = is_intact(path)
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    if intact is False:
        raise TrainingError(f"{path} was damaged or changed after it was written (its sha256 differs): {CURE}.")
    state = load_file(path, cure=CURE)  # also of a file without a digest: this says what it is
    if intact is None or not isinstance(state, dict):
        kind = "a dictionary without a digest" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise TrainingError(f"{path} holds {kind}: it is cut off, or not a checkpoint of this vitcifar: {CURE}.")
    return state


def check_tensors(found: Any, expected: Mapping[str, Tensor], what: str) -> None:
    """Raise TrainingError unless `found` has a tensor of the same name, shape and dtype for each that is expected."""
    if not isinstance(found, Mapping):
        raise TrainingError(f"{what} has no tensors: {CURE}.")
    if strange := sorted(map(str, found.keys() ^ expected.keys())):
        raise TrainingError(f"{what} has other tensors than this network ({listed(strange, 3)}): {CURE}.")
    for name, tensor in expected.items():
        if not isinstance(found[name], Tensor) or (found[name].shape, found[name].dtype) != (
            tensor.shape,
            tensor.dtype,
        ):
            raise TrainingError(f"{what} has another shape or type of {name} than this network: {CURE}.")


def identity_of(
    network: Classifier, trained: Iterable[str], train: ImageDataset, config: TrainConfig
) -> dict[str, Any]:
    """What a resumed run must share: settings, classes, and hashes of the images and of the weights not `trained`."""
    trained = set(trained)
    frozen = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        if name not in trained and name != "temperature":
            frozen.update(name.encode())
            frozen.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {
        "settings": {name: getattr(config, name) for name in deciding_settings()},
        "classes": list(network.class_names),
        "images": train.fingerprint,
        "frozen weights": frozen.hexdigest(),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of a run. They hold only the weights that training changes: the frozen ones are in its start."""

    folder: Path  # its name is the run's id
    identity: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    def save(self, name: str, **state: Any) -> None:
        """Write run, identity, weights and `state`; `weights` in `state` replaces the run's."""
        weights = {key: weight.detach() for key, weight in self.weights.items()}
        save({"run": self.folder.name, "identity": self.identity, "weights": weights, **state}, self.folder / name)

    def load(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint of this run and identity; raises TrainingError with the first difference."""
        state = load(path)
        saved = state.get("identity")
        if not isinstance(saved, dict) or not isinstance(saved.get("settings"), dict) or "weights" not in state:
            raise TrainingError(f"{path} is not a checkpoint of vitcifar: {CURE}.")
        for setting, value in self.identity["settings"].items():
            was = saved["settings"].get(setting, getattr(TrainConfig, setting, None))  # a new one has its default
            if was != value:
                option = setting.replace("_", "-")
                raise TrainingError(
                    f"The checkpoint {path} was made with {setting} {was!r}, not {value!r}: type --{option} {was}."
                )
        for part in ("classes", "images", "frozen weights"):
            if saved.get(part) != self.identity[part]:
                raise TrainingError(f"The checkpoint {path} was made with other {part}: {CURE}.")
        if state.get("run") != self.folder.name:
            raise TrainingError(
                f"The checkpoint {path} is of run {state.get('run')}: put back that of this run, or {CURE}."
            )
        if state["weights"] or state.get("state"):  # that of a run which has not trained an epoch has neither
            check_tensors(state["weights"], self.weights, f"The checkpoint {path}")
        return state

    def remove_partial(self) -> None:
        """Remove what a killed process left while it wrote a checkpoint."""
        if rank() == 0:
            for name in (LAST, BEST):
                (self.folder / (name + PARTIAL)).unlink(missing_ok=True)
