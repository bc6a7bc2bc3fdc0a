"""MLproject = commands."""

import re

import yaml
from support.project import ROOT

from vitcifar import cli
from vitcifar.cli.mlproject import mlproject

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


def test_a_rare_setting_is_not_declared_and_a_common_one_is():
    declared = ENTRIES["main"]["parameters"]
    assert {"preset", "data", "epochs", "learning_rate", "promote_to", "seeds"} <= declared.keys()
    assert not {"ema_decay", "num_views", "experiment", "tracking_uri"} & declared.keys()
    assert declared["epochs"]["default"] == cli.options.FROM_PRESET
