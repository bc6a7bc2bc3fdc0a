"""MLproject = commands."""

import dataclasses
import os
import re
import subprocess
import sys

import yaml
from support.project import ROOT

from vitcifar import cli
from vitcifar.cli.mlproject import mlproject
from vitcifar.config import TrainConfig

TEXT = (ROOT / "MLproject").read_text()
ENTRIES = yaml.safe_load(TEXT)["entry_points"]


def test_the_committed_file_is_what_the_generator_writes():
    assert mlproject() == TEXT, "run: python -m vitcifar.cli.mlproject > MLproject"


def test_every_command_is_an_entry_point():
    assert list(ENTRIES) == ["main" if name == "train" else name for name in cli.main.commands]


def test_every_declared_parameter_is_passed_to_an_option_or_argument_of_its_command():
    for entry, (name, command) in zip(ENTRIES.values(), cli.main.commands.items(), strict=True):
        line = entry["command"]
        assert line.startswith(f"python -m mlproject {name}")
        assert sorted(re.findall(r"\{(\w+)\}", line)) == sorted(entry["parameters"])
        assert set(re.findall(r"--[a-z0-9-]+", line)) <= {option for param in command.params for option in param.opts}


def test_no_setting_is_declared_so_mlflow_logs_only_what_was_given():
    settings = {field.name for field in dataclasses.fields(TrainConfig)} - {
        "model_name",
        "output_dir",
        "max_p95_ms",
    }  # of commands that train nothing, too
    declared = {name for entry in ENTRIES.values() for name in entry["parameters"]}
    assert not settings & declared
    assert cli.options.FROM_PRESET not in TEXT.replace("{preset}", "").replace("--preset", "").split("'")
    assert set(ENTRIES["main"]["parameters"]) == {"preset", "seeds", "soup", "verbose"}


def test_a_command_of_mlflow_run_works_in_the_folder_in_which_it_was_typed(tmp_path):
    """This process, whose folder is the user's, starts one in the folder of the project as `mlflow run` does."""
    print_folder = (
        "from vitcifar.cli.mlproject import change_to_launch_folder; change_to_launch_folder();"
        "import os; print(os.getcwd(), os.environ.get('PYTHONPATH', '').split(os.pathsep)[0], sep='|')"
    )
    command = ["bash", "-c", f'true && "{sys.executable}" -c "{print_folder}"']
    kept = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"} | {"PYTHONPATH": str(ROOT)}
    for more, folder, first in (({"MLFLOW_RUN_ID": "0"}, os.getcwd(), tmp_path), ({}, tmp_path, ROOT)):
        done = subprocess.run(command, cwd=tmp_path, env=kept | more, capture_output=True, text=True)
        assert done.stdout.strip() == f"{folder}|{first}", done.stderr


def test_no_entry_declares_what_only_mlflow_run_can_choose():
    declared = {name for entry in ENTRIES.values() for name in entry["parameters"]}
    assert not {"experiment", "run_name", "tracking_uri"} & declared
