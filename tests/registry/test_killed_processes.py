"""Publishing killed with SIGKILL at six points: every version is complete, and the doctor repairs the rest."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.project import ROOT

from vitcifar import tracking
from vitcifar.registry.aliases import move_alias
from vitcifar.registry.doctor import diagnose, repair
from vitcifar.registry.registry import Registry

PROGRAM = ROOT / "tests/programs/publish_and_die.py"
POINTS = {  # where it is killed: what the doctor finds, and the versions there are after the repair
    "parity": (["abandoned export"], []),
    "storing": (["abandoned export", "orphaned model"], []),
    "storing half of the files": (["abandoned export", "orphaned model"], []),
    "creating the model": (["unregistered release"], [1]),
    "creating the version": (["unregistered release"], [1]),
    "linking": (["unlinked version"], [1]),
}


@pytest.fixture
def store(new_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "mlflow.db").write_bytes(new_store.read_bytes())
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)  # read TMPDIR again
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    yield tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.undo()


def publish(point: str, uri: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), point, uri]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_the_doctor_leaves_only_complete_releases(point: str, store: str) -> None:
    killed = publish(point, store)
    assert killed.returncode == -9, killed.stderr
    registry, (kinds, numbers) = Registry("toy"), POINTS[point]
    for version in registry.list():  # whatever is registered is complete
        assert registry.pull(version.number, pytorch=True).release_id == "killed"
    found = repair(registry, stale_seconds=0)
    assert [finding.kind for finding in found] == kinds
    assert all(finding.fixed for finding in found)
    assert diagnose(registry, stale_seconds=0) == []
    assert [version.number for version in registry.list()] == numbers
    assert {path.name for path in Path(os.environ["TMPDIR"]).iterdir()} <= {".ses"}  # onnxruntime's own
    for number in numbers:
        assert move_alias(registry, "champion", number).after == number


def test_publishing_again_needs_no_doctor(store: str) -> None:
    assert publish("creating the version", store).returncode == -9
    done = publish("never", store)
    assert done.returncode == 0, done.stderr
    assert [version.number for version in Registry("toy").list()] == [1]
    assert move_alias(Registry("toy"), "champion", 1).after == 1
