"""What the commands that train say, and their exit codes."""

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from vitcifar import cli, pipeline


def run(*words):
    return CliRunner().invoke(cli.main, list(words))


@pytest.mark.parametrize(
    ("alias", "rejected", "promote_to", "code", "step"),
    [
        ("champion", "", "champion", 0, "vitcifar app --version champion --model-name toy"),
        (None, "", "none", 0, "vitcifar app --version 2 --model-name toy"),
        (None, "It is worse.", "champion", 3, "vitcifar compare 2 champion --model-name toy"),
        (None, "It is worse.", "challenger", 3, "vitcifar app --version 2 --model-name toy"),
    ],
    ids=["promoted", "not requested", "refused", "refused without a holder"],
)
def test_train_says_in_its_exit_code_and_in_words_what_came_of_the_promotion(
    registry, monkeypatch, alias, rejected, promote_to, code, step
):
    def train(config):
        evaluation = SimpleNamespace(accuracy_text=lambda: "0.9", calibration_text=lambda: "temperature 1")
        fields = {"run_id": "", "weights_sha256": "", "fingerprint": "", "model_name": "toy", "version": 2}
        return pipeline.Trained(evaluation=evaluation, alias=alias, rejected_because=rejected, **fields)

    monkeypatch.setattr(pipeline, "train", train)
    result = run("train", "--preset", "digits", "--model-name", "toy", "--promote-to", promote_to)
    assert result.exit_code == code, result.output
    assert rejected in result.stdout and step == result.stderr.split(maxsplit=1)[1].strip()


def test_data_counts_each_class_and_writes_a_png(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = ("--train-per-class", "3", "--validation-per-class", "2", "--test-per-class", "1")
    result = run("data", "--preset", "digits", "--sheet", "preview", *counts)
    assert result.exit_code == 0, result.output
    assert "30 images: 0 3, 1 3, 2 3" in result.stdout
    assert (tmp_path / "preview.png").is_file()


@pytest.mark.parametrize("sheet", ["preview.xyz", "nowhere/preview.png"])
def test_a_contact_sheet_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, sheet):
    monkeypatch.chdir(tmp_path)
    result = run("data", "--preset", "digits", "--sheet", sheet)
    assert result.exit_code == 1 and "cannot be written" in result.output and "name a .png file" in result.output


def test_the_variable_that_names_an_experiment_does_not_stop_a_run_from_being_resumed(monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    planned = []
    monkeypatch.setattr(
        pipeline, "plan", lambda preset, given: planned.append(given) or pipeline.resolve("cifar10", epochs=0)
    )
    for words in (["--resume", "last"], []):
        run("train", *words)
    assert planned == [{"resume": "last"}, {"experiment": "mine"}]
