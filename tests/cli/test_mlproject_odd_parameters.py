"""What `mlflow run` makes of parameters with characters of the shell, of wrong types, and of unknown names."""

import os
import re
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from mlflow.projects import _project_spec
from support.project import ROOT

from vitcifar import cli

ENTRIES = _project_spec.load_project(str(ROOT))._entry_points
ODD = "a'b\"c;touch made;$(touch made)`touch made`|touch made&\ntouch made\\ \t* ~ $HOME é"
# A stand-in for python that writes what it was called with.
SHELL = "python() {{ printf '%s\\0' \"$@\"; }}; {command}"


@pytest.mark.parametrize("name", ENTRIES)
def test_characters_of_the_shell_reach_a_command_as_they_were_typed(tmp_path: Path, name: str) -> None:
    entry = ENTRIES[name]
    given = {parameter: f"{ODD} {parameter}" for parameter in entry.parameters} | {"unknown_one": ODD}
    command = entry.compute_command(given, None)
    done = subprocess.run(["bash", "-c", SHELL.format(command=command)], cwd=tmp_path, capture_output=True, timeout=30)
    words = done.stdout.decode().split("\0")[:-1]
    assert done.returncode == 0 and words[:2] == ["-m", "mlproject"]
    assert [word for word in given.values() if word not in words] == []
    assert "--unknown_one" in words, "which click refuses"
    assert os.listdir(tmp_path) == []


def typed_options() -> list[tuple[str, str]]:
    """Every option of every command that is not free text."""
    return [
        (name, param.opts[0])
        for name, command in cli.main.commands.items()
        for param in command.params
        if isinstance(param, click.Option) and not isinstance(param.type, click.types.StringParamType | click.Path)
        if not param.is_flag and not isinstance(param.type, click.types.UnprocessedParamType)
    ]


@pytest.mark.parametrize("name", cli.main.commands)
def test_wrong_types_and_unknown_parameters_are_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    command = cli.main.commands[name]
    arguments = ["x" for param in command.params if isinstance(param, click.Argument) and param.required]
    wrong = [option for owner, option in typed_options() if owner == name]
    for words in ([option, ODD] for option in (*wrong, "--unknown-one")):
        done = CliRunner().invoke(cli.main, [name, *arguments, *words])
        assert done.exit_code == 2, (words[0], done.output)
        error = done.output[done.output.index("Error: ") :]
        assert words[0] in error and not re.search(r"Traceback|\x1b", done.output), words[0]
    assert os.listdir(tmp_path) == []
