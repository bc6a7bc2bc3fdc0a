"""A release on disk: what was changed, swapped, linked or brought along is refused before anything is opened."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.old_release import write_old_release
from support.releases import MLMODEL, make_release
from support.toys import make_onnx

from vitcifar.config import TrainConfig
from vitcifar.errors import ReleaseError
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.release.manifest import (
    LOADER_MODULE,
    Manifest,
    check_no_external_data,
    served_evaluation,
    sha256_of,
    verify,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_release(tmp_path / "release")
    return tmp_path / "release"


def test_release_json_reads_back_as_it_was_written(folder: Path) -> None:
    release = verify(folder, digest=sha256_of(folder / "release.json"))
    assert release.class_names == ("red", "green", "blue")
    assert release.onnx_path == folder / "model.onnx"
    assert set(release.files) == {"MLmodel", "data/model.pt2", "model.onnx"}
    assert dataclasses.replace(release, folder=None).to_json() == (folder / "release.json").read_text()


def test_what_mlflow_notes_later_in_the_folder_changes_nothing(folder: Path) -> None:
    (folder / "registered_model_meta").write_text("model_name: toy\nmodel_version: '1'\n")
    verify(folder)


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


def leave_one_out(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def bring_one_along(folder: Path) -> None:
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


def weights_elsewhere(folder: Path) -> None:
    proto = onnx.load(folder / "model.onnx")
    proto.graph.initializer[1].CopyFrom(external("weights"))
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    rehash(folder)


def rehash(folder: Path) -> None:
    """Somebody who changed a file and could write release.json as well."""
    fields = json.loads((folder / "release.json").read_text())
    fields["class_names"] = tuple(fields["class_names"])
    (folder / "release.json").unlink()
    write_manifest(Manifest(**fields), folder)


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (flip_a_byte, "model.onnx was changed"),
        (swap_a_file, "model.onnx was changed"),
        (hard_link, "hard-linked"),
        (symbolic_link, "is a link"),
        (leave_one_out, "lacks model.onnx"),
        (bring_one_along, "does not list: code.py"),
        (cut_release_json, "cannot be read as a release"),
        (foreign_loader, "wants to load 'antigravity'"),
        (own_code, "code or flavors of its own"),
        (weights_elsewhere, "keeps weights in other files"),
    ],
)
def test_a_tampered_release_is_refused(folder: Path, tamper: Callable[[Path], None], sentence: str) -> None:
    tamper(folder)
    with pytest.raises(ReleaseError, match=sentence):
        verify(folder)


@pytest.mark.parametrize("tamper", [change_release_json, foreign_loader, weights_elsewhere])
def test_the_digest_of_the_version_covers_release_json_itself(folder: Path, tamper: Callable[[Path], None]) -> None:
    digest = sha256_of(folder / "release.json")
    tamper(folder)
    with pytest.raises(ReleaseError, match="was changed: its sha256 is not the one the version was given"):
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
        ("more", 1),
    ],
)
def test_release_json_with_other_kinds_of_entries_is_refused(folder: Path, name: str, value: object) -> None:
    fields = json.loads((folder / "release.json").read_text())
    (folder / "release.json").write_text(json.dumps(fields | {name: value}))
    with pytest.raises(ReleaseError):
        verify(folder)


def external(name: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def in_an_attribute() -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["c"], value=external("c"))
    return helper.make_model(helper.make_graph([node], "g", [], []))


def in_a_branch() -> onnx.ModelProto:
    branch = helper.make_graph([], "branch", [], [], [external("w")])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    return helper.make_model(helper.make_graph([node], "g", [], []))


def in_a_function() -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["c"], value=external("c"))
    function = helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 20)])
    return helper.make_model(helper.make_graph([], "g", [], []), functions=[function])


@pytest.mark.parametrize("build", [in_an_attribute, in_a_branch, in_a_function])
def test_external_data_is_found_wherever_a_tensor_can_be(tmp_path: Path, build: Callable[[], onnx.ModelProto]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build().SerializeToString())
    with pytest.raises(ReleaseError, match="keeps weights in other files"):
        check_no_external_data(path)


def test_external_data_does_not_hide_behind_a_key_that_readers_take_differently(tmp_path: Path) -> None:
    """The graph under a key with bits above the 32nd, which onnxruntime ignores."""
    graph = helper.make_graph([], "g", [], [], [external("w")]).SerializeToString()
    key, length, written = (1 << 32) | (7 << 3 | 2), len(graph), bytearray()
    for number in (key, length):
        while number > 0x7F:
            written.append(number & 0x7F | 0x80)
            number >>= 7
        written.append(number)
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(written) + graph)
    with pytest.raises(ReleaseError, match="not a whole ONNX file"):
        check_no_external_data(path)


def test_a_file_with_all_its_weights_inside_passes(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], [weights])).SerializeToString())
    check_no_external_data(path)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff" * 40, b"\x0b\x0b\x0b"])
def test_what_is_no_onnx_file_is_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ReleaseError, match="not a whole ONNX file"):
        check_no_external_data(path)


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
