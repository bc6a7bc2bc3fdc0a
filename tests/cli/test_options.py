"""Options generated from the dataclasses, and how a command line is parsed."""

import dataclasses

import click
import pytest
from click.testing import CliRunner

from vitcifar import cli
from vitcifar.cli import options
from vitcifar.cli.options import at_home
from vitcifar.config import RENAMED_SETTINGS, TrainConfig
from vitcifar.errors import ConfigError
from vitcifar.registry.policy import Policy

TRAIN = cli.main.commands["train"]


def parse(command: str, *words: str) -> dict[str, object]:
    return cli.main.commands[command].make_context(command, list(words)).params


def test_train_has_an_option_for_every_setting():
    assert {field.name for field in dataclasses.fields(TrainConfig)} <= {param.name for param in TRAIN.params}


def test_no_command_has_a_bare_flag_which_mlflow_could_not_pass():
    for command in cli.main.commands.values():
        assert not [param.name for param in command.params if getattr(param, "is_flag", False)]


def test_promote_leaves_every_limit_to_the_policy_of_the_model_unless_it_is_given():
    values = parse("promote", "3", "--margin", "0.01", "--max-ece", "policy")
    limits = {field.name: values[field.name] for field in dataclasses.fields(Policy)}
    assert limits == dict.fromkeys(limits) | {"margin": 0.01}


def test_an_option_with_underscores_is_the_option_with_hyphens():
    assert parse("train", "--train_per_class", "7")["train_per_class"] == 7
    assert parse("train", "--learning_rate=0.1")["learning_rate"] == 0.1


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("--lr", "'--learning-rate' or '--lora-rank'?"),
        ("--wd", "'--weight-decay'?"),
        ("--epoch", "'--epochs'"),
        ("--zzz", "'--zzz'."),
    ],
)
def test_an_option_that_does_not_exist_suggests_the_one_of_its_initials_or_a_similar_one(typed, suggested):
    done = CliRunner().invoke(cli.main, ["train", typed, "3"])
    assert done.exit_code == 2
    assert suggested in done.stderr and "--help'?" not in done.stderr


def test_the_value_preset_leaves_a_setting_to_the_preset():
    values = options.given(parse("train", "--epochs", "preset", "--arch", "preset", "--batch-size", "9"))
    assert values["batch_size"] == 9
    assert not {"epochs", "arch"} & values.keys()


def test_a_value_that_is_refused_says_why_on_the_command_line_too():
    with pytest.raises(ConfigError, match="one ONNX file holds at most 2 GB"):
        TrainConfig(arch=parse("train", "--arch", "vit_h_14")["arch"])
    assert "vit_h_14" not in TRAIN.get_help(click.Context(TRAIN))


@pytest.mark.parametrize(("old", "value"), [("examine", "none"), ("robustness_pictures", "7"), ("outliers", "none")])
def test_an_old_name_of_a_setting_still_works_and_names_the_new_one(old, value, capsys):
    new, hyphenated = RENAMED_SETTINGS[old], old.replace("_", "-")
    for option in (f"--{old}", f"--{hyphenated}"):
        # As `mlflow run . -P examine=none` writes it: the declared parameter first, the undeclared one at the end.
        values = parse("train", f"--{new}", "preset", option, value)
        assert str(values[new]) == value
        assert capsys.readouterr().err == f"Note: --{hyphenated} is now called --{new.replace('_', '-')}.\n"
    assert f"--{hyphenated}" not in TRAIN.get_help(click.Context(TRAIN))


def test_the_old_option_of_doctor_and_the_old_value_of_rollback_still_work(monkeypatch):
    assert parse("doctor", "--settled-seconds", "0")["stale_seconds"] == 0
    targets = []

    class Stub:
        def rollback(self, alias, *, to, reason):
            targets.append(to)
            raise click.ClickException("stop")

    monkeypatch.setattr(options, "open_registry", lambda *_: Stub())
    for to in ("previous", "former", "3"):
        CliRunner().invoke(cli.main, ["rollback", "--to", to, "--reason", "wrong"])
    assert targets == [None, None, "3"]


def test_an_old_name_is_unknown_to_a_command_without_the_new_option():
    with pytest.raises(click.NoSuchOption):
        parse("versions", "--examine", "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--epochs", "0"], "0 is not in the range x>=1"),
        (["train", "--label-smoothing", "0.95"], "0.95 is not in the range 0.0<=x<=0.9"),
        (["prune", "--keep", "0"], "0 is not in the range x>=1"),
        (["promote", "1", "--max-ece", "2"], "2.0 is not in the range 0.0<=x<=1.0"),
        (["train", "--epochs", "abc"], "'abc' is not a valid integer"),
        (["train", "--optimizer", "adamm"], "adamw"),
        (["benchmark", "--threads", "two"], "numbers such as 1,2"),
        (["rollback"], "Missing option '--reason'"),
    ],
    ids=" ".join,
)
def test_a_wrong_value_is_exit_code_2_and_says_what_is_valid(words, message):
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 2
    assert message in result.output


def test_settings_that_contradict_each_other_are_one_line_and_exit_code_1():
    result = CliRunner().invoke(cli.main, ["train", "--lora-rank", "4"])
    assert result.exit_code == 1
    assert result.output == "Error: lora_rank adapts blocks, but train_layers is head: type --train-layers all.\n"


def test_threads_and_hosts_are_lists_separated_by_commas():
    assert parse("benchmark")["threads"] == ()
    assert parse("benchmark", "--threads", "1,2")["threads"] == (1, 2)
    assert parse("app")["allowed_hosts"] == ()
    assert parse("app", "--allowed-hosts", "a.example, b.example")["allowed_hosts"] == ("a.example", "b.example")


@pytest.mark.parametrize("command", ["train", "evaluate", "compare 1 2", "sweep"])
def test_an_experiment_that_cannot_count_under_mlflow_run_is_refused_with_the_option_that_does(monkeypatch, command):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    done = CliRunner().invoke(cli.main, [*command.split(), "--experiment", "my own"])
    assert done.exit_code == 1 and done.output.endswith("type mlflow run --experiment-name 'my own' instead.\n")


def test_the_name_of_a_run_that_exists_is_refused_and_the_value_preset_is_not_one(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    done = CliRunner().invoke(cli.main, ["train", "--run_name", "monday"])
    assert done.exit_code == 1 and "type mlflow run --run-name monday instead" in done.output
    done = CliRunner().invoke(cli.main, ["train", "--run_name", "preset", "--lora-rank", "4"])
    assert "lora_rank" in done.output


def test_the_variable_of_mlflow_names_the_experiment_of_every_command(monkeypatch):
    for words in (["train"], ["evaluate"], ["compare", "1", "2"], ["sweep"]):
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        assert parse(*words)["experiment"] in (None, "Default")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
        assert parse(*words)["experiment"] == "mine"


def test_mlflow_run_passes_several_files_as_one_text_which_is_read_as_the_shell_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.png", "b.png", "c d.png"):
        (tmp_path / name).touch()
    text = "b.png 'c d.png' ~/a.png *.png none.jpg"
    assert parse("predict", text)["files"] == [text]
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    every = ["a.png", "b.png", "c d.png"]
    assert parse("predict", text)["files"] == ["b.png", "c d.png", f"{tmp_path}/a.png", *every, "none.jpg"]
    assert parse("predict", "c d.png")["files"] == ["c d.png"]
    with pytest.raises(click.BadParameter, match=r"is not quoted as in a shell \(No closing quotation\)"):
        parse("predict", "it's.png b.png")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--sheet=~/p.png", "--sheet=/home/ann/p.png"),
        ("~/p.png", "/home/ann/p.png"),
        ("--reason=a=~/b", "--reason=a=~/b"),
        ("~", "~"),
        ("a~/b", "a~/b"),
    ],
)
def test_a_path_at_home_is_expanded_as_the_shell_does(monkeypatch, word, expected):
    monkeypatch.setenv("HOME", "/home/ann")
    assert at_home(word) == expected
