"""The manifest of a release (release.json), and the checks that run before any file of the release is opened.

release.json is written last and lists the sha256 of every other file; its own sha256, the digest, is a tag of the
registered version. Needs neither torch nor mlflow.
"""

import dataclasses
import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from vitcifar.config import RENAMED_SETTINGS
from vitcifar.errors import ReleaseError
from vitcifar.release.validation import check_types, parse_json

MANIFEST_FILE = "release.json"
ONNX_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
PT2_FILE = "data/model.pt2"
FORMAT = 2
LOADER_MODULE = "vitcifar.serving.rest"  # in the MLmodel of every published version: the module never moves
WRITTEN_LATER = frozenset({"registered_model_meta"})  # by MLflow, when a version is loaded by its name
# Keys of the checks in format 1 (vitcifar 0.1) -> theirs now.
RENAMED_CHECKS = {
    "num_pictures": "num_images",
    "num_odd_files": "num_edge_cases",
    "num_odd_changed": "num_edge_cases_changed",
    "kept": "accepted",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of release.json, plus `folder` and `version`: where it was read and for which version.

    Those two are not part of release.json. They are None for a release that was never on disk or not registered.
    """

    release_id: str
    model_name: str
    class_names: tuple[str, ...]
    image_size: int
    temperature: float
    fingerprint: str
    run_id: str
    serves: str = ONNX_FILE
    threshold: float | None = 0.0  # None = never confident
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
    def name(self) -> str:
        """What messages call it: the model, and the version if it is registered."""
        return self.model_name if self.version is None else f"{self.model_name} {self.version}"

    @property
    def onnx_path(self) -> Path:
        """The ONNX file that serves: the float export, or the int8 model if it was accepted."""
        return self.path(self.serves)

    @property
    def openvino(self) -> str:
        """The precision (fp32, bf16) in which OpenVINO runs the float export; "" = onnxruntime runs what serves.

        It is part of a check's record: older versions of vitcifar then run the float export in onnxruntime.
        """
        served = self.checks.get("served") or {}
        return str(served.get("openvino") or "") if self.serves == ONNX_FILE else ""

    @property
    def weight_bits(self) -> float:
        """The bits of the int8 model's weights; earlier versions of vitcifar wrote 8 and no record of it."""
        served = self.checks.get("served") or {}
        return float(served.get("weight_bits") or 8)

    @property
    def serving_format(self) -> str:
        """The format that serves: onnx-fp32, onnx-int8, openvino-fp32 or openvino-bf16."""
        if self.openvino:
            return f"openvino-{self.openvino}"
        return "onnx-int8" if self.serves == INT8_FILE else "onnx-fp32"

    def is_confident(self, probability: float) -> bool | None:
        """Whether a prediction reaches the threshold; None for a release without one."""
        if self.threshold == 0:
            return None
        return self.threshold is not None and probability >= self.threshold

    def path(self, name: str) -> Path:
        """The path of a file of the release on this machine."""
        assert self.folder is not None, "a release that was never on disk has no paths"
        return self.folder / name

    def to_json(self) -> str:
        """The text of release.json, with sorted keys: equal releases have equal files."""
        fields = dataclasses.asdict(self)
        del fields["folder"], fields["version"]
        return json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read a release.json of format 1 or 2 and validate it. Raises ReleaseError."""
    try:
        fields = upgrade(parse_json(path.read_bytes()))
        fields["class_names"] = tuple(fields["class_names"])
        fields["threshold"] = None if fields.get("threshold") == 1 else fields.get("threshold", 0.0)  # 1 in 0.1
        release = Manifest(**fields, folder=path.parent)
    except FileNotFoundError:
        raise ReleaseError(f"{path.parent} is not a release: it has no {MANIFEST_FILE}.") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ReleaseError(
            f"{path} cannot be read as a release ({str(error)[:200]}): pull the version again."
        ) from None
    if release.format != FORMAT:
        raise ReleaseError(f"{path} has format {release.format!r}, expected {FORMAT}: update vitcifar to open it.")
    check_types(path, release)
    if release.serves not in release.files:
        raise ReleaseError(f"{path} does not list the file that serves, {release.serves!r}: pull the version again.")
    for name in release.files:
        _check_name(name)
    return release


def upgrade(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert the fields of a release.json of format 1 (vitcifar 0.1) to format 2; return others unchanged."""
    if fields.get("format") != 1:
        return fields
    checks = rename_keys(fields.pop("proofs"), RENAMED_CHECKS)
    for evaluation in (checks.get("test", {}), checks.get("served", {}).get("evaluation", {})):
        if "confused" in evaluation:
            evaluation["confused"] = rename_keys(evaluation["confused"], {"answer": "prediction"})
    return {**fields, "format": FORMAT, "checks": checks, "config": rename_keys(fields["config"], RENAMED_SETTINGS)}


def rename_keys(value: Any, names: Mapping[str, str]) -> Any:
    """A JSON value with some keys renamed, at every depth."""
    if isinstance(value, dict):
        return {names.get(key, key): rename_keys(inner, names) for key, inner in value.items()}
    return [rename_keys(inner, names) for inner in value] if isinstance(value, list) else value


def served_evaluation(release: Manifest) -> dict[str, Any]:
    """The evaluation on the test images of the format that serves; empty if it was not recorded.

    The float file in onnxruntime has the network's evaluation (the parity check requires equal predictions), other
    formats have their own.
    """
    if release.serving_format == "onnx-fp32":
        return release.checks.get("test") or {}
    return (release.checks.get("served") or {}).get("evaluation") or {}


def index_tags(release: Manifest) -> dict[str, str]:
    """What MLflow's page shows and searches of a release. Tags can be edited: numbers are read from release.json."""
    accuracy, data = served_evaluation(release).get("accuracy"), release.config.get("data")
    if data == "folder":
        data = Path(release.config.get("data_dir", "")).absolute().name
    texts = {"test_accuracy": accuracy if accuracy is None else f"{accuracy:.3f}", "dataset": data}
    return {**{name: text for name, text in texts.items() if text is not None}, "serves": release.serving_format}


def _check_name(name: str) -> None:
    """Reject the name of a file outside the release's folder. Raises ReleaseError."""
    path = PurePosixPath(name)
    if (
        not name.isprintable()
        or not name
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or str(path) != name
    ):
        raise ReleaseError(f"{MANIFEST_FILE} names {name!r}, which is not a file inside the release.")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(release: Manifest, folder: Path) -> str:
    """Write release.json with the sha256 of every file in the folder; returns its own digest."""
    files = {name: sha256_of(folder / name) for name in sorted(_names(folder))}
    path = folder / MANIFEST_FILE
    path.write_text(dataclasses.replace(release, files=files).to_json(), encoding="utf-8")
    return sha256_of(path)


def verify(
    folder: Path | str, *, digest: str | None = None, optional: frozenset[str] = frozenset(), where: str = ""
) -> Manifest:
    """Compare every file of a release with release.json, and release.json with the digest of the version.

    Also rejects links, unexpected files and an MLmodel that names foreign code; files in `optional` may be missing.
    `where` replaces the folder in messages. Raises ReleaseError; no file has been opened by onnxruntime or torch then.
    (onnxruntime refuses ONNX files with external data when it opens them, see inference/session.py.)
    """
    folder = Path(folder)
    where = where or str(folder)
    present = _names(folder)
    if digest is not None and (folder / MANIFEST_FILE).is_file():
        check_digest(folder, MANIFEST_FILE, digest, where)
    release = read_manifest(folder / MANIFEST_FILE)
    listed = release.files.keys()
    if missing := listed - present - optional:
        raise ReleaseError(f"The release in {where} lacks {', '.join(sorted(missing))}: run `vitcifar doctor`.")
    if unexpected := present - listed:
        raise ReleaseError(f"The release in {where} has unexpected files: {', '.join(sorted(unexpected))}.")
    for name in sorted(present):
        check_digest(folder, name, release.files[name], where)
    check_mlmodel(folder)
    return release


def check_digest(folder: Path, name: str, expected: str, where: str) -> None:
    actual = sha256_of(folder / name)
    if actual != expected:
        raise ReleaseError(
            f"{name} in {where} was changed after it was registered: expected sha256 {expected[:12]}…, got "
            f"{actual[:12]}…. Run `vitcifar doctor`, and serve another version until then."
        )


def check_mlmodel(folder: Path) -> None:
    """Reject an MLmodel that would make MLflow import code other than vitcifar's. Raises ReleaseError."""
    path = folder / "MLmodel"
    if not path.exists():
        raise ReleaseError(f"The release in {folder} lacks MLmodel: pull the version again.")
    try:
        flavors = yaml.safe_load(path.read_text(encoding="utf-8"))["flavors"]
        loader = flavors["python_function"]["loader_module"]
        code = [flavor.get("code") for flavor in flavors.values()]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ReleaseError(f"{path} cannot be read ({type(error).__name__}): pull the version again.") from None
    if loader != LOADER_MODULE:
        raise ReleaseError(f"{path} names the loader {loader!r}, expected {LOADER_MODULE!r}: do not open this release.")
    if any(code) or set(flavors) - {"python_function", "pytorch", "onnx"}:
        raise ReleaseError(f"{path} contains code or unexpected flavors: do not open this release.")


def _names(folder: Path) -> set[str]:
    """The files that release.json lists or should list; rejects links. Raises ReleaseError."""
    names = set()
    for path in folder.rglob("*"):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ReleaseError(f"{path} is a link or a device, not a regular file: do not open this release.")
        if status.st_nlink > 1:
            raise ReleaseError(f"{path} has hard links: do not open this release.")
        names.add(path.relative_to(folder).as_posix())
    return names - {MANIFEST_FILE} - WRITTEN_LATER
