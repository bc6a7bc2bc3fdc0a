"""What the commands on versions advise works as it is printed."""

import os
import shlex

import mlflow.cli
import pytest
from click.testing import CliRunner
from support.releases import add_version
from support.toys import settle

from vitcifar import cli
from vitcifar.registry.aliases import move_alias
from vitcifar.registry.registry import Registry


@pytest.fixture
def other(folder, monkeypatch):
    """A model with three versions in a store that the environment does not name; words that name both."""
    monkeypatch.chdir(folder)
    uri = settle(folder, monkeypatch)
    for number in "123":
        add_version(folder, number, "my model")
    move_alias(Registry("my model"), "champion", 3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    return ["--model-name", "my model", "--tracking-uri", uri]


def type_command(words):
    return CliRunner().invoke(cli.main, words)


def test_prune_prints_the_command_that_frees_the_disk_space(other):
    pruned = type_command(["prune", "--keep", "1", "--delete", "yes", *other])
    command = shlex.split(pruned.stderr.partition("type ")[2])
    assert command[:2] == ["mlflow", "gc"]
    done = CliRunner().invoke(mlflow.cli.gc, command[2:])
    assert done.output.count("has been permanently deleted") == 2, done.output
    assert not os.path.exists("elsewhere.db")


def test_doctor_prints_the_command_that_repairs(other, folder):
    registry = Registry("my model")
    registry.client.delete_logged_model_tag(registry.model_id(registry.show(1)), "mlflow.modelVersions")
    found = type_command(["doctor", "--stale-seconds", "60", *other])
    assert found.exit_code == 1
    words = shlex.split(found.stderr.partition("type ")[2].strip().removesuffix("."))
    assert words == ["vitcifar", "doctor", "--repair", "yes", "--stale-seconds", "60", *other]
    repaired = type_command(words[1:])
    assert repaired.exit_code == 0 and "unlinked version" in repaired.stdout, repaired.output
