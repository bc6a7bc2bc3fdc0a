"""A release on disk: what release.json says, and the checks that stand before anything in the folder is opened.

release.json is written last and holds the sha256 of every other file; its own sha256, the digest, is a tag of the
registered version. Needs neither torch nor mlflow.
"""

import dataclasses
import hashlib
import json
import mmap
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from vitcifar.config import RENAMED_SETTINGS
from vitcifar.errors import ReleaseError

MANIFEST_FILE = "release.json"
ONNX_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
PT2_FILE = "data/model.pt2"
FORMAT = 2
LOADER_MODULE = "vitcifar.serving.rest"
# MLflow writes this one into the folder whenever somebody loads the version by its name.
RENAMED_CHECKS = {
    "num_pictures": "num_images",
    "num_odd_files": "num_edge_cases",
    "num_odd_changed": "num_edge_cases_changed",
    "kept": "accepted",
}
WRITTEN_LATER = frozenset({"registered_model_meta"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a release says of itself. `folder` and `version` are where it was found, not part of release.json."""

    release_id: str
    model_name: str
    class_names: tuple[str, ...]
    image_size: int
    temperature: float
    fingerprint: str
    run_id: str
    serves: str = ONNX_FILE
    threshold: float = 0.0
    preprocessing: dict[str, Any] = dataclasses.field(default_factory=dict)
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    git: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    checks: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    format: int = FORMAT
    folder: Path | None = None
    version: int | None = None

    @property
    def onnx_path(self) -> Path:
        """The ONNX file that serves: the float export, or the int8 one when it earned its place."""
        return self.path(self.serves)

    def path(self, name: str) -> Path:
        """Where a file of the release lies on this machine."""
        assert self.folder is not None, "a release that was never on disk has no paths"
        return self.folder / name

    def to_json(self) -> str:
        """The text of release.json: sorted, so that equal releases are equal files."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["folder"], fields["version"]
        return json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read a release.json and check its form. Raises ReleaseError."""
    try:
        fields = upgrade(json.loads(path.read_bytes()))
        fields["class_names"] = tuple(fields["class_names"])
        release = Manifest(**fields, folder=path.parent)
    except FileNotFoundError:
        raise ReleaseError(f"{path.parent} is not a release: it has no {MANIFEST_FILE}.") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ReleaseError(f"{path} cannot be read as a release ({error}): pull the version again.") from None
    if release.format != FORMAT:
        raise ReleaseError(f"{path} has format {release.format!r}, expected {FORMAT}: update vitcifar to open it.")
    _check_types(path, release)
    if release.serves not in release.files:
        raise ReleaseError(f"{path} does not list the file that serves, {release.serves!r}: pull the version again.")
    for name in release.files:
        check_name(name)
    return release


def upgrade(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a release.json of format 1 (vitcifar 0.1) in the names of today's format; others as they are."""
    if fields.get("format") != 1:
        return fields
    checks = rename_keys(fields.pop("proofs"), RENAMED_CHECKS)
    for evaluation in (checks.get("test", {}), checks.get("served", {}).get("evaluation", {})):
        if "confused" in evaluation:
            evaluation["confused"] = rename_keys(evaluation["confused"], {"answer": "prediction"})
    return {**fields, "format": FORMAT, "checks": checks, "config": rename_keys(fields["config"], RENAMED_SETTINGS)}


def rename_keys(value: Any, names: Mapping[str, str]) -> Any:
    """The same JSON with other names for some keys, at every depth."""
    if isinstance(value, dict):
        return {names.get(key, key): rename_keys(inner, names) for key, inner in value.items()}
    return [rename_keys(inner, names) for inner in value] if isinstance(value, list) else value


def served_evaluation(release: Manifest) -> dict[str, Any]:
    """What the file that serves scored on the test images; nothing when it was not recorded.

    The float file answers as the network, whose scores stand for it; the int8 file has scores of its own.
    """
    if release.serves == ONNX_FILE:
        return release.checks.get("test", {})
    return release.checks.get("served", {}).get("evaluation", {})


def _check_types(path: Path, release: Manifest) -> None:
    """Refuse a release.json whose entries are not what the code takes them for. Raises ReleaseError."""
    kinds = {"image_size": int, "temperature": (int, float), "threshold": (int, float)}
    kinds |= dict.fromkeys(("release_id", "model_name", "fingerprint", "run_id", "serves"), str)
    kinds |= dict.fromkeys(("files", "checks", "config", "counts", "git", "environment", "preprocessing"), dict)
    wrong = [name for name, kind in kinds.items() if not isinstance(getattr(release, name), kind)]  # type: ignore[arg-type]
    if not wrong:
        texts = (*release.class_names, *release.files, *release.files.values())
        wrong += ["class_names or files"] if {type(text) for text in texts} != {str} else []
        wrong += [] if 0 < release.temperature < float("inf") else ["temperature"]
    if wrong:
        raise ReleaseError(f"{path} is not a release.json of ours (wrong: {', '.join(wrong)}): pull the version again.")


def check_name(name: str) -> None:
    """Refuse a file name that would lie outside the release's folder. Raises ReleaseError."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
        raise ReleaseError(f"{MANIFEST_FILE} names {name!r}, which is not a file inside the release.")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a folder by its name, release.json and what MLflow writes later left out."""
    return {name: sha256_of(folder / name) for name in sorted(_names(folder))}


def write_manifest(release: Manifest, folder: Path) -> str:
    """Write release.json with the sha256 of every file that lies in the folder; returns its own digest."""
    whole = dataclasses.replace(release, files=hash_folder(folder))
    path = folder / MANIFEST_FILE
    path.write_text(whole.to_json(), encoding="utf-8")
    return sha256_of(path)


def verify(folder: Path | str, *, digest: str | None = None, optional: frozenset[str] = frozenset()) -> Manifest:
    """Hold every file of a release against release.json, and release.json against the digest of the version.

    Also refuses links, files that are not listed, ONNX files with data elsewhere and an MLmodel that names foreign
    code. Files named in `optional` may be missing. Raises ReleaseError; by then nothing in the folder has been opened
    by onnxruntime or torch.
    """
    folder = Path(folder)
    _check_links(folder)
    if digest is not None and (folder / MANIFEST_FILE).is_file() and sha256_of(folder / MANIFEST_FILE) != digest:
        raise ReleaseError(f"{folder / MANIFEST_FILE} was changed: its sha256 is not the one the version was given.")
    release = read_manifest(folder / MANIFEST_FILE)
    present, listed = set(_names(folder)), set(release.files)
    if missing := listed - present - optional:
        raise ReleaseError(f"The release in {folder} lacks {', '.join(sorted(missing))}: pull it again.")
    if strange := present - listed:
        raise ReleaseError(f"The release in {folder} holds files that it does not list: {', '.join(sorted(strange))}.")
    for name in sorted(present):
        expected, actual = release.files[name], sha256_of(folder / name)
        if actual != expected:
            raise ReleaseError(f"{folder / name} was changed: expected sha256 {expected[:12]}…, got {actual[:12]}….")
        if name.endswith(".onnx"):
            check_no_external_data(folder / name)
    check_mlmodel(folder)
    return release


def check_mlmodel(folder: Path) -> None:
    """Refuse an MLmodel that would make MLflow import code that is not ours. Raises ReleaseError."""
    path = folder / "MLmodel"
    if not path.exists():
        raise ReleaseError(f"The release in {folder} lacks MLmodel: pull it again.")
    try:
        flavors = yaml.safe_load(path.read_text(encoding="utf-8"))["flavors"]
        loader = flavors["python_function"]["loader_module"]
        code = [flavor.get("code") for flavor in flavors.values()]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ReleaseError(f"{path} cannot be read ({type(error).__name__}): pull the version again.") from None
    if loader != LOADER_MODULE:
        raise ReleaseError(f"{path} wants to load {loader!r}, expected {LOADER_MODULE!r}: do not open this release.")
    if any(code) or set(flavors) - {"python_function", "pytorch", "onnx"}:
        raise ReleaseError(f"{path} brings code or flavors of its own: do not open this release.")


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name != MANIFEST_FILE and name not in WRITTEN_LATER:
            yield name


def _check_links(folder: Path) -> None:
    for path in folder.rglob("*"):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ReleaseError(f"{path} is a link or a device, not a plain file: do not open this release.")
        if status.st_nlink > 1:
            raise ReleaseError(f"{path} is hard-linked from elsewhere: do not open this release.")


# Which fields of which ONNX message hold which other message, on the way to a tensor (onnx.proto, IR version 13).
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def check_no_external_data(path: Path) -> None:
    """Refuse an ONNX file whose tensors lie in other files. Raises ReleaseError.

    Walks the protobuf fields over a memory map: a file of 344 MB is checked without holding it in memory.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _holds_external_data(data, 0, len(data), "model", 0)
    except (ValueError, IndexError):
        raise ReleaseError(f"{path} is not a whole ONNX file: pull the version again.") from None
    if found:
        raise ReleaseError(f"{path} keeps weights in other files: do not open this release.")


def _holds_external_data(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> bool:
    if depth > 50:
        raise ValueError("nested too deeply")
    position = start
    while position < end:
        key, position = _varint(data, position)
        if not 8 <= key < 1 << 32:  # what readers make of a longer one differs
            raise ValueError("not the key of a field")
        field, wire = key >> 3, key & 7
        if message == "tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and data[position] != 0)):
            return True
        if wire == 0:
            _, position = _varint(data, position)
        elif wire == 1:
            position += 8
        elif wire == 2:
            length, position = _varint(data, position)
            inner = _MESSAGES.get(message, {}).get(field)
            if inner and _holds_external_data(data, position, position + length, inner, depth + 1):
                return True
            position += length
        elif wire == 5:
            position += 4
        else:
            raise ValueError(f"wire type {wire}")
    if position != end:
        raise ValueError("cut off")
    return False


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("number too long")
