"""A release is opened in the format that was proven, or in another that was, with a sentence."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.networks import random_images
from support.releases import make_release
from support.toys import make_onnx

from vitcifar.errors import ReleaseError
from vitcifar.inference import machine, openvino_session
from vitcifar.inference.session import OnnxClassifier
from vitcifar.release import served as served_module
from vitcifar.release.manifest import Manifest, index_tags, read_manifest, served_evaluation
from vitcifar.release.served import open_served

CHECKS = {"test": {"accuracy": 0.5}, "served": {"file": "model.onnx", "evaluation": {"accuracy": 0.25}}}


def release(folder: Path, precision: Any, **fields: Any) -> Manifest:
    make_release(folder / "release", checks={**CHECKS, "served": {**CHECKS["served"], "openvino": precision}}, **fields)
    return read_manifest(folder / "release" / "release.json")


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("bf16", "OpenVINO is not installed: type pip install 'vitcifar\\[openvino\\]'"),
        ("fp4", "this vitcifar does not know its precision 'fp4': update vitcifar"),
    ],
)
def test_where_openvino_cannot_run_a_release_its_float_file_serves_and_a_sentence_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, why: str
) -> None:
    monkeypatch.setattr(openvino_session, "is_installed", lambda: False)
    with pytest.warns(match=rf"toy was chosen to run with OpenVINO \({precision}\), but {why}\. Now onnxruntime runs"):
        model = open_served(release(tmp_path, precision))
    images = random_images(3, 20, 24)
    np.testing.assert_array_equal(model.logits(images), OnnxClassifier(tmp_path / "release/model.onnx").logits(images))


def test_a_processor_without_bfloat16_runs_the_float_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_session, "is_installed", lambda: True)
    monkeypatch.setattr(openvino_session, "fastest_precision", lambda: "fp32")
    with pytest.warns(match="but this processor does not compute in bfloat16"):
        model = open_served(release(tmp_path, "bf16"))
    images = random_images(3, 20, 24)
    np.testing.assert_array_equal(model.logits(images), OnnxClassifier(tmp_path / "release/model.onnx").logits(images))


@pytest.mark.parametrize(
    ("weight_bits", "saturates", "file"),
    [
        ({}, True, "model.onnx"),
        ({"weight_bits": 8}, True, "model.onnx"),
        ({"weight_bits": 7}, True, "model.int8.onnx"),
        ({}, False, "model.int8.onnx"),
    ],
)
def test_where_products_of_8_bits_saturate_the_float_file_serves_unless_weights_have_7(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    weight_bits: Any,
    saturates: bool,
    file: str,
) -> None:
    monkeypatch.setattr(served_module, "saturates_int8", lambda: saturates)
    (tmp_path / "release").mkdir()
    make_onnx(tmp_path / "release" / "model.int8.onnx", temperature=3.0)
    checks = {"test": {"accuracy": 0.5}, "served": {"file": "model.int8.onnx", **weight_bits}}
    make_release(tmp_path / "release", checks=checks, serves="model.int8.onnx")
    served = read_manifest(tmp_path / "release" / "release.json")
    images = random_images(3, 20, 24)
    expected = OnnxClassifier(tmp_path / "release" / file).probabilities(images)
    np.testing.assert_array_equal(open_served(served).probabilities(images), expected)
    sentences = [str(one.message) for one in recwarn if "saturate" in str(one.message)]
    assert len(sentences) == (file == "model.onnx")


@pytest.mark.parametrize(
    ("processor", "flags", "saturates"),
    [
        ("x86_64", ("avx2", "fma"), True),
        ("AMD64", (), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx512f", "avx512_vnni", "amx_int8"), False),
        ("aarch64", ("asimddp",), False),
    ],
)
def test_an_x86_processor_without_vnni_saturates(
    monkeypatch: pytest.MonkeyPatch, processor: str, flags: tuple[str, ...], saturates: bool
) -> None:
    here = dataclasses.replace(machine.this_machine(), flags=flags)
    monkeypatch.setattr(machine, "this_machine", lambda: here)
    monkeypatch.setattr(machine.platform, "machine", lambda: processor)
    assert machine.saturates_int8() is saturates


def test_the_scores_of_a_release_in_openvino_are_those_of_openvino(tmp_path: Path) -> None:
    served = release(tmp_path, "bf16")
    assert (served.serves, served.serving_format, index_tags(served)["serves"]) == (
        *("model.onnx", "openvino-bf16"),
        "openvino-bf16",
    )
    assert served_evaluation(served) == {"accuracy": 0.25}
    assert index_tags(served)["test_accuracy"] == "0.250"


def test_other_releases_say_nothing_of_openvino(tmp_path: Path) -> None:
    """Older versions of vitcifar refuse a release.json with fields that they do not know."""
    make_release(tmp_path / "plain", checks={"test": {"accuracy": 0.5}})
    plain = read_manifest(tmp_path / "plain" / "release.json")
    assert (plain.openvino, plain.serving_format, served_evaluation(plain)) == ("", "onnx-fp32", {"accuracy": 0.5})
    assert "openvino" not in (tmp_path / "plain" / "release.json").read_text()


def test_a_precision_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"invalid values for checks\.served\.openvino"):
        release(tmp_path, 16)


def test_older_versions_find_the_fields_that_they_know(tmp_path: Path) -> None:
    """The choice of OpenVINO is in a check's record, so they run the float file in onnxruntime."""
    release(tmp_path, "bf16")
    fields = json.loads((tmp_path / "release" / "release.json").read_text())
    known = "checks class_names config counts environment files fingerprint format git image_size model_name "
    assert sorted(fields) == f"{known}preprocessing release_id run_id serves temperature threshold".split()
    assert fields["serves"] == "model.onnx"
