"""What `-h` shows."""

import os
import re

import click
import pytest
from click.testing import CliRunner

from vitcifar import cli

COMMANDS = cli.main.commands


def help_of(*words: str) -> str:
    result = CliRunner().invoke(cli.main, [*words, "-h"])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_the_program_lists_every_command_once_under_a_heading():
    text = help_of()
    headings = [text.index(f"{heading}: ") for heading in ("Train", "Evaluate", "Registry", "Serve", "Maintenance")]
    assert headings == sorted(headings)
    listed = [command.name for commands in cli.COMMANDS.values() for command in commands]
    assert sorted(listed) == sorted(set(listed)) == sorted(COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_is_listed_with_a_short_first_sentence_that_is_not_cut_off(name):
    first = " ".join((COMMANDS[name].help or "").split("\n\n")[0].split())
    assert first in help_of()
    assert len(first) <= 105 and ". " not in first


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_has_an_example_and_a_sentence_and_a_default_for_each_option(name):
    command = COMMANDS[name]
    context = click.Context(command, parent=click.Context(cli.main, **cli.main.context_settings))
    assert f"vitcifar {name}" in help_of(name)
    for param in command.params:
        if isinstance(param, click.Option):
            _, text = param.get_help_record(context) or ("", "")
            assert re.search(r"[\w)]\.  \[.*(default: |required).*\]$", text), text


def test_the_bounds_and_the_values_of_the_presets_are_in_the_help():
    text = help_of("train")
    assert "[default: 10; digits: 12; x>=1]" in text
    assert "[default: 0.0; 0.0<=x<=0.9]" in text
    assert "[default: vit_b_16; digits: vit_tiny]" in text
    assert "RANGE" not in text
    assert "[default: as the version was trained" in help_of("evaluate")


def test_settings_stand_under_the_headings_of_their_groups():
    text = help_of("train")
    for heading, option in {"Data": "--data", "Training": "--epochs", "Release": "--model-name"}.items():
        assert f" {heading}: {option} " in text


def test_every_command_forbids_mlflow_to_load_pickles(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    assert CliRunner().invoke(cli.main, ["cache", "list"]).exit_code == 0
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
