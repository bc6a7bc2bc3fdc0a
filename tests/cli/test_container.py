"""What `vitcifar container` prints, and that it asks the registry before it writes."""

from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from support.releases import add_version
from support.toys import settle

from vitcifar import cli


def test_a_container_is_written_for_a_version_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settle(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    add_version(tmp_path, "one")
    words = ["container", "--model-name", "toy", "--out", "server", "--version"]
    result = CliRunner().invoke(cli.main, [*words, "champion"])
    assert (result.exit_code, Path("server").exists()) == (1, False)
    assert "toy has no version 'champion': there are 1" in result.output
    mlflow.MlflowClient().set_registered_model_alias("toy", "champion", "1")
    result = CliRunner().invoke(cli.main, [*words, "@champion"])
    assert result.output.startswith("toy champion (now version 1) in server: Dockerfile, compose.yaml, ")
    assert '"--version", "champion", "--model-name", "toy"' in Path("server/Dockerfile").read_text()
    assert "is not empty" in CliRunner().invoke(cli.main, [*words, "1"]).output
