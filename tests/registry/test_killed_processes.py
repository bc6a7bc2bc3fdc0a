"""Publishing killed with SIGKILL at six points: every version is complete, and the doctor repairs the rest."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.project import ROOT

from vitcifar import tracking
from vitcifar.registry.aliases import move_alias
from vitcifar.registry.doctor import diagnose, repair
from vitcifar.registry.prune import delete, prune
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


AGAIN = "again"  # the folder of one that is killed, and of another that publishes the same again


@pytest.fixture(scope="module")
def published(new_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one store for each point, in which processes published until they were killed there."""
    place, words = tmp_path_factory.mktemp("killed"), []
    for folder, points in {**{point: [point] for point in POINTS}, AGAIN: ["creating the version", "never"]}.items():
        (place / folder / "temporary").mkdir(parents=True)
        shutil.copy(new_store, place / folder)
        words += [word for point in points for word in (str(place / folder), point)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ["-9"] * (len(POINTS) + 1) + ["0"], done.stderr
    return place


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Connects to the store of a folder, with a cache and temporary files of its own there; returns its URI."""

    def enter_folder(folder: Path) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("TMPDIR", str(folder / "temporary"))
        monkeypatch.setattr("tempfile.tempdir", None)  # read TMPDIR again
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        monkeypatch.setenv("VITCIFAR_CACHE", str(folder / "cache"))
        return tracking.connect(f"sqlite:///{folder}/mlflow.db")

    yield enter_folder
    monkeypatch.undo()


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_the_doctor_leaves_only_complete_releases(
    point: str, published: Path, enter: Callable[[Path], str]
) -> None:
    enter(published / point)
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


def test_publishing_again_needs_no_doctor(published: Path, enter: Callable[[Path], str]) -> None:
    enter(published / AGAIN)
    assert [version.number for version in Registry("toy").list()] == [1]
    assert move_alias(Registry("toy"), "champion", 1).after == 1


@pytest.mark.slow
def test_processes_killed_while_they_move_aliases_and_ten_that_move_one_at_once(
    folder: Path, enter: Callable[[Path], str]
) -> None:
    """A killed process holds no lock; the doctor completes or removes its record; of ten, one wins from each state."""
    program = ROOT / "tests/programs/move_and_die.py"
    (folder / "temporary").mkdir()
    store = enter(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), str(folder), store]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    ended = [line.split() for line in done.stdout.splitlines()]
    kills = [line for line in ended[1:] if line[0] != "ten"]
    assert ended[0] == ["set-up", "0"] and len(kills) == 7, done.stderr
    assert [line[1] for line in kills] == ["-9"] * 7, done.stderr
    assert ended[8:] == [["ten", "1", "9"]] * 3, done.stderr
    events = Registry("ten").history()
    assert [event.before for event in events] == [None, *(event.after for event in events[:-1])]
    assert len(events) == 4 and Registry("ten").aliases() == {"champion": events[-1].after}
    for name, _ in kills:
        registry = Registry(name)
        found = repair(registry, stale_seconds=0)
        assert all(finding.fixed or finding.kind == "deleted model" for finding in found), (name, found)
        left = diagnose(registry, stale_seconds=0)
        assert [finding.kind for finding in left] == (["deleted model"] if name == "prune" else []), (name, left)
        events = registry.history()
        assert all(event.done for event in events)
        held = registry.aliases()["champion"]
        assert events[-1].after == held and held in {"promote": (1, 2), "rollback": (3, 1), "doctor": (1,)}.get(
            name.split("-")[0], (3,)
        )
        assert move_alias(registry, "champion", 2).after == 2  # at once
        if name == "prune":
            (old,) = prune(registry, keep=1)
            delete(registry, old)
            assert [version.number for version in registry.list()] == [3, 2]
            assert diagnose(registry, stale_seconds=0) == []
