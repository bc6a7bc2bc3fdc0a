"""What the commands that train say, and their exit codes."""

import dataclasses
import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from PIL import Image

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
        fields |= {"folder": Path("runs/1"), "event_files": Path("runs/tensorboard/one")}
        return pipeline.Trained(evaluation=evaluation, alias=alias, rejected_because=rejected, gates=(), **fields)

    monkeypatch.setattr(pipeline, "train", train)
    result = run("train", "--preset", "digits", "--model-name", "toy", "--promote-to", promote_to)
    assert result.exit_code == code, result.output
    assert rejected in result.stdout and step == result.stderr.splitlines()[-1].split(maxsplit=1)[1]
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # which MLflow marks FAILED for any other exit code
    assert run("train", "--preset", "digits", "--model-name", "toy", "--promote-to", promote_to).exit_code == 0


def test_a_run_is_tagged_with_its_version_and_what_came_of_the_promotion():
    gates = (SimpleNamespace(name="files", passed=True), SimpleNamespace(name="accuracy", passed=False))
    fields = dict.fromkeys(("run_id", "weights_sha256", "fingerprint", "evaluation", "folder", "event_files"), "")
    refused = pipeline.Trained(
        model_name="toy", version=2, alias=None, rejected_because="It is worse.", gates=gates, **fields
    )
    assert refused.tags("champion") == {"version": "toy/2", "promotion": "refused: accuracy"}
    assert refused.tags("none") == {"version": "toy/2"}
    assert dataclasses.replace(refused, rejected_because="").tags("champion")["promotion"] == "champion"


def test_train_prints_no_password_of_a_database(registry, monkeypatch):
    def train(config):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:SECRET@db.example/mlflow")
        fields = {
            "run_id": "abc",
            "model_name": "toy",
            "version": 2,
            "alias": None,
            "rejected_because": "",
            "gates": (),
        }
        folders = {"folder": Path("runs/1"), "event_files": Path("runs/tensorboard/one")}
        return SimpleNamespace(evaluation=SimpleNamespace(accuracy_text=lambda: "0.9"), budget="", **fields, **folders)

    monkeypatch.setattr(pipeline, "train", train)
    result = run("train", "--preset", "digits")
    assert "mlflow ui --backend-store-uri 'postgresql://***@db.example/mlflow'" in result.stderr
    assert "SECRET" not in result.output


def test_data_counts_each_class_of_an_unbalanced_folder_and_says_what_is_skipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (
        ("train/cat", 30),
        ("train/dog", 5),
        ("val/cat", 3),
        ("val/dog", 2),
        ("test/cat", 1),
        ("test/dog", 1),
    ):
        (tmp_path / "F" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"F/{name}/{number}.png")
    (tmp_path / "F/train/cat/Thumbs.db").write_bytes(b"x")
    counts = ("--train-per-class", "0", "--validation-per-class", "0", "--test-per-class", "0")
    with pytest.warns(UserWarning) as notes:
        result = run("data", "--data", "folder", "--data-dir", "F", *counts)
    assert result.exit_code == 0, result.output
    assert [line.split(maxsplit=1)[1] for line in result.stdout.splitlines()[:3]] == [
        "35 images: cat 30, dog 5", "5 images: cat 3, dog 2", "2 images: cat 1, dog 1"
    ]  # fmt: skip
    assert [str(note.message) for note in notes] == [
        "Skipped in F: 1 hidden or system file or folder (train/cat/Thumbs.db).",
        "The validation images are those in F/val, none of train.",
    ]


def test_data_counts_each_class_and_writes_a_png(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = ("--train-per-class", "3", "--validation-per-class", "2", "--test-per-class", "1")
    result = run("data", "--preset", "digits", "--sheet", "preview", *counts)
    assert result.exit_code == 0, result.output
    assert "30 images: 0 3, 1 3, 2 3" in result.stdout
    assert (tmp_path / "preview.png").is_file()


@pytest.mark.parametrize(
    ("sheet", "cure"), [("preview.xyz", "name a .png file"), ("nowhere/preview.png", "name another file with --sheet")]
)
def test_a_contact_sheet_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, sheet, cure):
    monkeypatch.chdir(tmp_path)
    result = run("data", "--preset", "digits", "--sheet", sheet)
    assert result.exit_code == 1 and "cannot be written" in result.output and cure in result.output


def test_a_full_disk_is_one_sentence_that_names_the_place(tmp_path, monkeypatch):
    def train(config):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x/model.onnx", None, "mlruns/model.onnx")

    monkeypatch.setattr(pipeline, "train", train)
    monkeypatch.chdir(tmp_path)
    result = run("train", "--preset", "digits")
    assert result.exit_code == 1
    assert result.output.startswith("Error: mlruns/model.onnx cannot be written (No space left on device): free disk")


def test_the_variable_that_names_an_experiment_does_not_stop_a_run_from_being_resumed(monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    planned = []
    monkeypatch.setattr(
        pipeline, "plan", lambda preset, given, uri: planned.append(given) or pipeline.resolve("cifar10", epochs=0)
    )
    for words in (["--resume", "last"], []):
        run("train", *words)
    assert planned == [{"resume": "last"}, {"experiment": "mine"}]
