"""What the commands print that answer with a version."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from support.scores import add_version, scores
from support.toys import make_image, settle

from vitcifar import cli, tracking


def test_a_folder_is_scored_into_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settle(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    add_version(tmp_path, "one", scores(360))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/red.png").write_bytes(make_image("red"))
    (tmp_path / "photos/broken.png").write_bytes(b"not an image")
    words = ["score", "photos", "--out", "table.csv", "--version", "1", "--model-name", "toy"]
    result = CliRunner().invoke(cli.main, words)
    assert result.output.splitlines()[-1] == (
        "2 images by toy version 1 in table.csv; 1 could not be classified, see the column error."
    )
    assert [line.split(",")[:2] for line in Path("table.csv").read_text().splitlines()] == [
        ["path", "label"],
        ["photos/broken.png", ""],
        ["photos/red.png", "red"],
    ]
    assert "exists: delete it" in CliRunner().invoke(cli.main, words).output
