"""Addresses of tracking stores, where the files of a moved project lie, and folders that can be written."""

import os
from pathlib import Path

import pytest

from vitcifar.errors import ConfigError
from vitcifar.uris import beside, check_writable, sqlite_path


@pytest.mark.parametrize(
    ("existing", "found"),
    [
        ([], "new/mlruns/1/run"),  # moved before it had any file
        (["new/mlruns/1/run"], "new/mlruns/1/run"),
        (["new/mlruns/1"], "new/mlruns/1/run"),  # a new run of a moved project
        (["old"], "old/mlruns/1/run"),  # the first run of a project whose database is elsewhere
        (["old/mlruns/1", "new/mlruns/1"], "old/mlruns/1/run"),
        (["old/mlruns/1", "new/mlruns/1/run"], "new/mlruns/1/run"),
        (["old/mlruns/1/run", "new/mlruns/1/run"], "old/mlruns/1/run"),
        (["old/mlruns", "new/run"], "old/mlruns/1/run"),  # deleted: a folder of the same name is not it
    ],
)
def test_recorded_files_are_found_beside_the_database_only_if_the_project_was_moved(tmp_path, existing, found):
    for name in ["new", *existing]:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    assert beside(tmp_path / "old/mlruns/1/run", tmp_path / "new") == tmp_path / found


def test_files_outside_of_mlflows_own_folder_are_where_they_were_recorded(tmp_path):
    (tmp_path / "new/mlruns").mkdir(parents=True)
    assert beside(tmp_path / "old/artifacts/run", tmp_path / "new") == tmp_path / "old/artifacts/run"


def test_a_database_in_the_home_folder_is_in_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sqlite_path("sqlite:///~/x.db") == tmp_path / "x.db"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, in which nobody can write (Linux)")
def test_a_folder_is_tried_and_nothing_is_left_there(tmp_path):
    check_writable(tmp_path / "new/runs", "name another")
    assert os.listdir(tmp_path) == []
    with pytest.raises(ConfigError, match=r"^The folder /proc/runs cannot be written to \(.*\): name another\.$"):
        check_writable(Path("/proc/runs"), "name another")
