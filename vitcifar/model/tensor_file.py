"""Files of tensors that anybody made: no code in them is run, and what is wrong with one is said in one sentence."""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from vitcifar.errors import TrainingError, reason_of

# Classes of what checkpoints hold beside tensors: settings, paths, numpy's numbers. `Ignored` is made in their place.
IGNORED = (
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"{module}.{system}Path" for module in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
)
AGAIN = "copy or download it again"
SAVE = "save tensors alone, with torch.save(network.state_dict(), PATH)"
# How files begin that are no tensors: what they are, and the cure.
KINDS = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the file that it stands for", "type `git lfs pull` there"),
    (b"<!doctype", "is a web page", "download the file itself"),
    (b"<html", "is a web page", "download the file itself"),
    (b"<?xml", "is an XML file, as servers answer errors with", "download the file itself"),
    (b"\x1f\x8b", "is a gzip archive", "unpack it first"),
    (b"\x89hdf", "is an HDF5 file of Keras", SAVE),
    (b"gguf", "is a GGUF file", SAVE),
)


class Ignored:
    """Stands in for an object of a class in a file: takes any arguments and any state, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_file(path: Path, *, cure: str = "") -> Any:
    """What torch.save or safetensors wrote, with objects of some harmless classes replaced by `Ignored`.

    Raises TrainingError with what is wrong and `cure`, or else what cures that.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own about old formats
            return _load(path)
    except Exception as error:  # a file that is damaged, or made to harm, may raise anything in a library
        problem, advice = _diagnose(path, error)
        raise TrainingError(f"{path} {problem}: {cure or advice}.") from error


def _load(path: Path) -> Any:
    with path.open("rb") as file:  # the content decides the format, not the name
        head = file.read(10)
        file.seek(0)
        if head.startswith(b"PK"):  # torch does not compare the checksums in its archives
            with zipfile.ZipFile(file) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
                names = {name.rpartition("/")[2] for name in archive.namelist()}
                if "data.pkl" not in names or "constants.pkl" in names:
                    kind = "TorchScript, which is code" if "constants.pkl" in names else "not of torch.save"
                    raise ValueError(f"a zip archive, {kind}")
            file.seek(0)
        elif head[8:9] == b"{" or (path.suffix == ".safetensors" and not head.startswith(b"\x80")):
            import safetensors.torch

            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([(Ignored, name) for name in IGNORED]):
            return torch.load(file, map_location="cpu", weights_only=True)


def _diagnose(path: Path, error: Exception) -> tuple[str, str]:
    """What is wrong with a file that raised this error, and the cure."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as unreadable:
        return f"cannot be read ({unreadable.strerror})", "check its permissions"
    start, reason = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower(), _reason(error)
    for mark, what, advice in KINDS:
        if start.startswith(mark):
            return what, advice
    if not head:
        return "is empty", AGAIN
    if not re.search(rb"[\x00-\x08\x0e-\x1f]", head):
        return "is a text file", SAVE
    if found := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", reason):
        return f"holds an object of {found[1]}, and code from a file is never run", SAVE
    if isinstance(error, zipfile.BadZipFile):
        return f"is damaged or cut off ({reason})", AGAIN
    return f"cannot be read as tensors ({reason})", f"{AGAIN}, or {SAVE}"


def _reason(error: Exception) -> str:
    """The library's reason, without the advice that torch puts around it."""
    text = reason_of(error)
    text = text.partition("WeightsUnpickler error: ")[2] or text
    return text.partition(" Check the documentation of torch.load")[0].rstrip(". ")
