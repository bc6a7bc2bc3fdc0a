"""Addresses of tracking stores, and where the files of a moved project lie."""

import pytest

from vitcifar.uris import beside


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
