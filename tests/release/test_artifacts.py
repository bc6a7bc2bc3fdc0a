"""The artifact store: a release with changed, missing or unexpected files is told apart from an unavailable store."""

import os
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from support.releases import make_release

from vitcifar.errors import TrackingError
from vitcifar.release.artifacts import artifact_errors, environment_variable, find_mismatch
from vitcifar.release.manifest import read_manifest


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return tmp_path / "stored"


def test_a_complete_release_has_no_mismatch(stored: Path) -> None:
    digest = make_release(stored)
    (stored / "registered_model_meta").write_text("MLflow writes it when a version is loaded by its name")
    assert not find_mismatch(stored.as_uri(), digest)


def test_changed_missing_and_unexpected_files_are_named(stored: Path) -> None:
    digest = make_release(stored)
    (stored / "model.onnx").write_bytes(b"changed")
    (stored / "data" / "model.pt2").unlink()
    (stored / "code.py").write_text("")
    mismatch = find_mismatch(stored.as_uri(), digest)
    assert mismatch.missing_or_changed == ("data/model.pt2", "model.onnx")
    assert mismatch.unexpected == ("code.py",)
    assert str(mismatch) == (
        "missing or changed in the store: data/model.pt2, model.onnx; unexpected in the store: code.py"
    )


def test_a_changed_manifest_hides_other_files_unless_the_release_is_known(stored: Path) -> None:
    digest = make_release(stored)
    known = read_manifest(stored / "release.json")
    (stored / "model.onnx").unlink()
    (stored / "release.json").write_text("{}")
    assert find_mismatch(stored.as_uri(), digest).missing_or_changed == ("release.json",)
    assert find_mismatch(stored.as_uri(), digest, known).missing_or_changed == ("release.json", "model.onnx")


def test_a_location_without_files_is_empty(stored: Path) -> None:
    stored.mkdir()
    assert find_mismatch(stored.as_uri(), "0" * 64).empty


@pytest.mark.parametrize("error", [MlflowException("no route"), OSError("no route"), ConnectionError("no route")])
def test_an_unavailable_store_is_an_error_with_its_reason(error: Exception) -> None:
    long = OSError(f"{'retries ' * 60}\n(Caused by: refused)")
    with pytest.raises(TrackingError, match=r"retries \(Caused by: refused\)\): check"), artifact_errors():
        raise long
    with pytest.raises(TrackingError, match=r"The artifact store .*no route"), artifact_errors():
        raise error


def test_an_environment_variable_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCIFAR_A", "before")
    monkeypatch.delenv("VITCIFAR_B", raising=False)
    with environment_variable("VITCIFAR_A", "x"), environment_variable("VITCIFAR_B", "x"):
        assert (os.environ["VITCIFAR_A"], os.environ["VITCIFAR_B"]) == ("x", "x")
    assert os.environ["VITCIFAR_A"] == "before" and "VITCIFAR_B" not in os.environ
