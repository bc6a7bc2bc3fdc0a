"""A release on disk: changed, missing, linked and unexpected files are rejected before any file is opened."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from support.old_release import write_old_release
from support.releases import MLMODEL, make_release
from support.toys import make_onnx

from vitcifar.config import TrainConfig
from vitcifar.errors import ReleaseError
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.inference.session import OnnxClassifier
from vitcifar.release.manifest import LOADER_MODULE, Manifest, served_evaluation, sha256_of, verify, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_release(tmp_path / "release")
    return tmp_path / "release"


def test_release_json_survives_a_round_trip(folder: Path) -> None:
    release = verify(folder, digest=sha256_of(folder / "release.json"))
    assert release.class_names == ("red", "green", "blue")
    assert release.onnx_path == folder / "model.onnx"
    assert set(release.files) == {"MLmodel", "data/model.pt2", "model.onnx"}
    assert dataclasses.replace(release, folder=None).to_json() == (folder / "release.json").read_text()


def test_a_file_that_mlflow_adds_later_is_not_unexpected(folder: Path) -> None:
    (folder / "registered_model_meta").write_text("model_name: toy\nmodel_version: '1'\n")
    assert "registered_model_meta" not in verify(folder).files


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def swap_a_file(folder: Path) -> None:
    make_onnx(folder / "model.onnx", release_id="another")


def hard_link(folder: Path) -> None:
    os.link(folder / "model.onnx", folder.parent / "elsewhere")


def symbolic_link(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere")


def remove_a_file(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def add_a_file(folder: Path) -> None:
    (folder / "code.py").write_text("print('hello')")


def cut_release_json(folder: Path) -> None:
    (folder / "release.json").write_text((folder / "release.json").read_text()[:-20])


def change_release_json(folder: Path) -> None:
    text = (folder / "release.json").read_text()
    (folder / "release.json").write_text(text.replace('"green"', '"grean"'))


def foreign_loader(folder: Path) -> None:
    (folder / "MLmodel").write_text(MLMODEL % "antigravity")
    rehash(folder)


def own_code(folder: Path) -> None:
    text = (MLMODEL % LOADER_MODULE).replace("code: null", "code: mine", 1)
    (folder / "MLmodel").write_text(text)
    rehash(folder)


def pickle_flavor(folder: Path) -> None:
    (folder / "MLmodel").write_text(MLMODEL % LOADER_MODULE + "  sklearn: {pickled_model: model.pkl}\n")
    rehash(folder)


def nested_mlmodel(folder: Path) -> None:
    (folder / "MLmodel").write_text("[" * 1000)
    rehash(folder)


def weights_elsewhere(folder: Path) -> None:
    proto = onnx.load(folder / "model.onnx")
    proto.graph.initializer[1].CopyFrom(external("weights"))
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    rehash(folder)


def rehash(folder: Path) -> None:
    """Write release.json again, as an attacker who can change every file would."""
    fields = json.loads((folder / "release.json").read_text())
    fields["class_names"] = tuple(fields["class_names"])
    (folder / "release.json").unlink()
    write_manifest(Manifest(**fields), folder)


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (flip_a_byte, "model.onnx in .* was changed"),
        (swap_a_file, "model.onnx in .* was changed"),
        (hard_link, "hard links"),
        (symbolic_link, "is a link"),
        (remove_a_file, "lacks model.onnx"),
        (add_a_file, "unexpected files: code.py"),
        (cut_release_json, "cannot be read as a release"),
        (foreign_loader, "names the loader 'antigravity'"),
        (own_code, "code or unexpected flavors"),
        (pickle_flavor, "code or unexpected flavors"),
        (nested_mlmodel, "MLmodel cannot be read"),
    ],
)
def test_a_tampered_release_is_rejected(folder: Path, tamper: Callable[[Path], None], sentence: str) -> None:
    tamper(folder)
    with pytest.raises(ReleaseError, match=sentence):
        verify(folder)


@pytest.mark.parametrize("tamper", [change_release_json, foreign_loader, weights_elsewhere])
def test_the_digest_of_the_version_covers_release_json_itself(folder: Path, tamper: Callable[[Path], None]) -> None:
    digest = sha256_of(folder / "release.json")
    tamper(folder)
    with pytest.raises(ReleaseError, match=r"release\.json in .* was changed after it was registered"):
        verify(folder, digest=digest)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../b", "a\\b", "", "./a"])
def test_release_json_cannot_name_files_outside_the_folder(folder: Path, name: str) -> None:
    fields = json.loads((folder / "release.json").read_text())
    fields["files"][name] = "0" * 64
    (folder / "release.json").write_text(json.dumps(fields))
    with pytest.raises(ReleaseError, match="not a file inside the release"):
        verify(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_names", 3),
        ("class_names", [1]),
        ("files", []),
        ("files", {"model.onnx": 7}),
        ("serves", ["model.onnx"]),
        ("temperature", "1"),
        ("temperature", 0),
        ("image_size", None),
        ("checks", 1),
        ("format", 3),
        ("unknown", 1),
    ],
)
def test_release_json_with_values_of_other_types_is_rejected(folder: Path, name: str, value: object) -> None:
    fields = json.loads((folder / "release.json").read_text())
    (folder / "release.json").write_text(json.dumps(fields | {name: value}))
    with pytest.raises(ReleaseError):
        verify(folder)


def external(name: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def test_a_release_with_external_data_is_rejected_when_it_is_opened(folder: Path) -> None:
    weights_elsewhere(folder)
    release = verify(folder)
    with pytest.raises(ReleaseError, match="is not an ONNX file that can be opened"):
        OnnxClassifier(release.onnx_path)


@pytest.mark.parametrize("int8", [False, True])
def test_a_release_of_format_1_is_read_in_the_names_of_today(tmp_path: Path, int8: bool) -> None:
    digest = write_old_release(tmp_path / "old", int8=int8)
    release = verify(tmp_path / "old", digest=digest)
    assert release.format == 2
    assert (release.checks["parity"]["num_images"], release.checks["parity"]["num_edge_cases"]) == (24, 18)
    assert [candidate["accepted"] for candidate in release.checks["int8"].values()] == [False, int8]
    evaluation = Evaluation.from_dict(served_evaluation(release))
    assert [(pair.label, pair.prediction) for pair in evaluation.confused] == [("green", "blue")]
    assert TrainConfig(**release.config).ood == "auto"
    assert "num_edge_cases_changed" in release.checks.get("served", {"num_edge_cases_changed": 0})
