"""Building a release: it records where it comes from, and a failed check stores nothing."""

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import mlflow
import pytest

from vitcifar.errors import ReleaseError
from vitcifar.release import build


def test_release_json_records_where_the_release_comes_from(registry: Any, published: Any) -> None:
    release = registry.pull(1)
    assert release.run_id == published.run_id
    assert release.fingerprint == published.splits.fingerprint
    assert release.config == dataclasses.asdict(published.config)
    assert release.counts["test"] == dict.fromkeys(published.splits.class_names, 2)
    assert release.environment["packages"]["mlflow"] == mlflow.__version__
    assert release.checks["parity"]["num_images"] == len(published.splits.test) + 18
    assert release.preprocessing["resize"] == "bilinear, antialiased"


def test_the_commit_is_that_of_our_own_checkout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package may be installed inside a repository, as in a virtual environment, or be copied into one."""
    file = tmp_path / "lib" / "vitcifar" / "release" / "build.py"
    file.parent.mkdir(parents=True)
    shutil.copy(build.__file__, file)

    def git(*words: str) -> None:
        command = ["git", "-c", "user.name=ann", "-c", "user.email=ann@example", *words]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    def recorded(checkout: Path) -> bool:
        monkeypatch.setattr(build, "CHECKOUT", checkout)
        monkeypatch.setattr(build, "__file__", str(file))
        return build.git_state.__wrapped__()["commit"] is not None

    git("init")
    git("commit", "--allow-empty", "-m", "another project")
    assert not recorded(tmp_path / "lib"), "installed in another repository"
    assert not recorded(tmp_path), "a file that the repository does not hold"
    git("add", "lib")
    assert not recorded(tmp_path / "lib"), "copied into another repository"
    assert recorded(tmp_path), "our own checkout"


def test_a_failed_check_stores_and_registers_nothing(
    registry: Any, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = registry.pull(1).onnx_path
    monkeypatch.setattr(build, "export_onnx", lambda network, path, **more: shutil.copy(another, path))
    before = [version.number for version in registry.list()]
    models = len(mlflow.search_logged_models(output_format="list"))
    with pytest.raises(ReleaseError, match="Nothing was registered"):
        build.build_release(
            published.networks[2],
            splits=published.splits,
            evaluation={},
            config=published.config,
            run_id=published.run_id,
        )
    assert [version.number for version in registry.list()] == before
    assert len(mlflow.search_logged_models(output_format="list")) == models


def test_a_package_without_metadata_is_left_out_of_the_environment(tmp_path, monkeypatch):
    """importlib_metadata, which MLflow imports, raises where the standard library answers None."""
    import importlib_metadata  # noqa: F401

    (tmp_path / "broken-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    packages = build.environment()["packages"]
    assert "torch" in packages and "broken" not in packages
