"""MLproject = commands = README. Run this file to write MLproject anew from the commands."""

import dataclasses
import re
import textwrap
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from vitcifar import cli
from vitcifar.config import PRESETS, TrainConfig, resolve
from vitcifar.errors import ConfigError

ROOT = Path(__file__).parents[2]
# Given by MLflow itself to what it runs.
BY_MLFLOW = {"tracking_uri"}
# MLflow logs every declared parameter of a run, so the settings that few people change stay undeclared: MLflow hands
# `-P ema_decay=0.99` to the command all the same.
DECLARED = [
    *("data", "data_dir", "train_per_class", "arch", "weights", "train_layers", "epochs", "batch_size"),
    *("learning_rate", "seed", "resume", "model_name", "promote_to"),
    *("seeds", "search", "trials", "name", "storage", "pruner"),
]
HEADER = """\
# What can be run: `mlflow run . -e ENTRY -P NAME=VALUE`. mlproject.py runs it, vitcifar/ knows how.
# Parameters are the commands' options; every other option of `train` can be given in the same way. The value `preset`
# leaves a setting to the preset (digits, cifar10).
# Written from the commands by `python tests/cli/test_cli.py`.
name: vitcifar
conda_env: conda.yaml

entry_points:
"""


def entry_name(command: str) -> str:
    return "main" if command == "train" else command


def declared(params: list[click.Parameter]) -> list[click.Parameter]:
    settings = params if len(params) < 25 else [p for p in params if p.name in DECLARED or p.name == "preset"]
    return [p for p in settings if p.name not in BY_MLFLOW]


def default_text(param: click.Parameter) -> str:
    if isinstance(param.type, cli.Setting):
        return cli.FROM_PRESET
    return ";".join(param.default) if param.multiple else str(param.default)


def expected_mlproject() -> str:
    """MLproject as the commands say it."""
    text = HEADER
    for name, command in cli.main.commands.items():
        params = declared(command.params)
        text += f"\n  # {command.get_short_help_str(200)}\n  {entry_name(name)}:\n    parameters:\n"
        line = f"python -m mlproject {name}"
        for param in params:
            word = max(param.opts, key=len)
            parameter = word.lstrip("-").replace("-", "_")
            text += f"      {parameter}: "
            text += "{type: string}\n" if param.required else f"{{type: string, default: {default_text(param)!r}}}\n"
            line += f" {{{parameter}}}" if isinstance(param, click.Argument) else f" {word} {{{parameter}}}"
        wrapped = textwrap.wrap(line, 110, break_long_words=False, break_on_hyphens=False)
        text += "    command: >-\n" + "".join(f"      {part}\n" for part in wrapped)
    return text


def test_mlproject_says_what_the_commands_say():
    assert (ROOT / "MLproject").read_text() == expected_mlproject()


def test_every_command_is_an_entry_point_and_in_the_readme():
    entries = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    readme = (ROOT / "README.md").read_text()
    for name in cli.main.commands:
        assert entry_name(name) in entries
        assert f"vitcifar {name}" in readme


def test_every_command_and_setting_that_the_readme_types_exists():
    readme = (ROOT / "README.md").read_text().replace("\\\n", " ")
    typed = re.findall(r"^(?:\$ )?vitcifar ([a-z-]+)(.*)$", readme, flags=re.MULTILINE)
    assert len(typed) >= 8
    for name, rest in typed:
        command = cli.main.commands[name]
        known = {option for param in command.params for option in param.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"vitcifar {name}{rest}"


@pytest.mark.parametrize("name", list(cli.main.commands))
def test_every_help_text_has_an_example_and_a_sentence_for_each_option(name):
    command = cli.main.commands[name]
    assert f"vitcifar {name}" in (command.help or "")
    assert all(param.help for param in command.params if isinstance(param, click.Option))
    asked = CliRunner().invoke(cli.main, [name, "-h"])
    assert asked.exit_code == 0, asked.output


def test_train_has_an_option_for_every_setting_and_no_bare_flag():
    options = {param.name for param in cli.main.commands["train"].params}
    assert {field.name for field in dataclasses.fields(TrainConfig)} <= options
    for command in cli.main.commands.values():
        assert not [param.name for param in command.params if getattr(param, "is_flag", False)]


def test_options_may_be_written_as_mlflow_writes_them():
    command = cli.main.commands["train"]
    context = command.make_context("train", ["--train_per_class", "7", "--epochs", "preset"])
    assert context.params["train_per_class"] == 7
    assert context.params["epochs"] is None


def test_a_wrong_value_is_exit_code_2_and_lists_the_choices():
    result = CliRunner().invoke(cli.main, ["train", "--optimizer", "adamm"])
    assert result.exit_code == 2
    assert "adamw" in result.output
    result = CliRunner().invoke(cli.main, ["train", "--epochs", "abc"])
    assert result.exit_code == 2
    assert "'abc' is not a valid integer" in result.output


def test_a_value_that_cannot_be_is_one_sentence_and_exit_code_1():
    result = CliRunner().invoke(cli.main, ["train", "--epochs", "0"])
    assert result.exit_code == 1
    assert result.output == "Error: epochs is 0: it must be at least 1.\n"


def test_a_preset_is_overridden_by_what_is_given():
    assert resolve("digits").arch == PRESETS["digits"]["arch"]
    assert resolve("digits", epochs=3).epochs == 3
    with pytest.raises(ConfigError, match="choose one of cifar10, digits"):
        resolve("imagenet")


if __name__ == "__main__":
    (ROOT / "MLproject").write_text(expected_mlproject())
