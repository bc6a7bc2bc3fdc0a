"""The full pipeline through the real `mlflow` command and the real `vitcifar` command."""

import json
import re
import shlex
import stat
import urllib.request

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from support.commands import QUICK, client_of, mlflow_run, vitcifar
from support.toys import settle
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitcifar import pipeline, tracking
from vitcifar.cli import main
from vitcifar.errors import ConfigError
from vitcifar.presets import resolve
from vitcifar.registry.registry import Registry


@pytest.fixture(scope="module")
def pipeline_run(tmp_path_factory):
    """A folder in which `mlflow run . --env-manager local` has run the full pipeline, with MLflow's default store."""
    folder = tmp_path_factory.mktemp("pipeline") / "my project ü"
    folder.mkdir()
    # output_dir is not declared in MLproject: MLflow passes it as --output_dir
    entry = {**QUICK, "train_per_class": "100", "epochs": "4", "output_dir": "my runs"}  # good enough for the gates
    done = mlflow_run(folder, "--env-manager", "local", entry=entry, MLFLOW_TRACKING_URI="")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert {path.name for path in folder.iterdir()} >= {"mlflow.db", "mlruns", "my runs"}
    return folder, done


@pytest.fixture
def store(pipeline_run):
    return client_of(pipeline_run[0])


def only_run(client):
    runs = [run for run in client.search_runs(["0"]) if "evaluates" not in run.data.tags]
    assert len(runs) == 1
    return runs[0]


def test_mlflow_run_ends_in_a_promoted_version(pipeline_run, store):
    version = store.get_model_version_by_alias("vitcifar", "champion")
    assert version.version == "1" or version.version == 1
    assert version.run_id == only_run(store).info.run_id
    assert "vitcifar 1 (champion)" in pipeline_run[1].stdout
    assert "mismatch" not in pipeline_run[1].stderr, "MLflow warns of the wheel in every release"


def test_the_run_has_config_datasets_figures_and_event_files(store):
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert (run.data.params["config.epochs"], run.data.params["config.experiment"]) == ("4", "Default")
    assert run.data.params["config.learning_rate"]
    assert int(run.data.params["model.trainable_parameters"]) > 10_000
    datasets = {
        tag.value for entry in run.inputs.dataset_inputs for tag in entry.tags if tag.key == "mlflow.data.context"
    }
    assert datasets == {"train", "validation", "test"}
    assert len(run.data.tags["weights_sha256"]) == 64
    files = {item.path for item in store.list_artifacts(run.info.run_id, "figures/test")}
    assert "figures/test/confusion_matrix.png" in files
    assert store.list_artifacts(run.info.run_id, "tensorboard")
    per_epoch = {metric.step for metric in store.get_metric_history(run.info.run_id, "validation/accuracy")}
    assert len(per_epoch) == 4


def test_the_run_ends_with_a_tensorboard_command_that_calls_the_run_as_mlflow_does(pipeline_run, store):
    folder, done = pipeline_run
    command = next(line.partition(" ")[2] for line in done.stderr.splitlines() if line.startswith("TensorBoard"))
    program, option, logdir = shlex.split(command)
    assert (program, option) == ("tensorboard", "--logdir")
    assert [path.name for path in (folder / logdir).iterdir()] == [only_run(store).info.run_name]


def test_the_run_of_a_project_says_what_it_is_and_logs_what_was_given(pipeline_run, store):
    run = only_run(store)
    name = "vit_tiny all lr1e-3 s0 validation_per_class=5 test_per_class=5 epochs=4"
    assert (run.info.run_name, run.data.tags["kind"]) == (name, "train")
    folder = pipeline_run[0] / "my runs" / "tensorboard" / name
    assert any(one.name == "head/weight" for one in EventAccumulator(str(folder)).Reload().Graph().node)
    bare = {key: value for key, value in run.data.params.items() if "." not in key}
    assert bare["epochs"] == "4" and "preset" not in bare.values() and "learning_rate" not in bare
    assert len([key for key in run.data.metrics if not key.startswith("system/")]) <= 21
    description = run.data.tags["mlflow.note.content"]
    assert re.match(r"\*\*Test accuracy [01]\.\d", description) and "Version 1 of vitcifar (champion)." in description


def test_the_release_and_the_best_checkpoint_are_logged_models_with_the_metrics_of_each_split(store):
    run = only_run(store)
    order = [{"field_name": "metrics.validation/best_accuracy", "ascending": False}]
    models = store.search_logged_models(["0"], order_by=order)
    kinds = sorted(model.name.partition(f" of {run.info.run_name}")[0] for model in models)  # first: lists cut names
    assert re.fullmatch(r"epoch [1-4], release", ", ".join(kinds))
    for model in models:
        assert {metric.dataset_name for metric in model.metrics} == {"digits-validation", "digits-test"}
        values = {metric.key: metric.value for metric in model.metrics}
        assert values["test/accuracy"] == run.data.metrics["test/accuracy"]
        assert values["validation/accuracy"] == values["validation/best_accuracy"]


@pytest.fixture
def run_here(pipeline_run, monkeypatch):
    """Runs a command in that folder, within this process."""
    monkeypatch.chdir(pipeline_run[0])
    settle(pipeline_run[0], monkeypatch)
    return lambda *words: CliRunner().invoke(main, list(words))


def test_tensorboard_and_mlflow_agree_on_the_whole_run(run_here, store):
    done = run_here("compare-logs", only_run(store).info.run_id)
    assert done.exit_code == 0, done.output
    assert re.search(r"agree on \d{2,} values of \d{2,} metrics", done.stdout)


def test_an_evaluation_is_its_own_run_linked_to_the_version(run_here, store):
    done = run_here("evaluate", "--version", "champion")
    assert done.exit_code == 0, done.output
    run = store.get_run(re.search(r"run +(\w{32})", done.stdout)[1])
    assert run.data.tags["evaluates"] == "models:/vitcifar/1"
    assert run.info.experiment_id == only_run(store).info.experiment_id, "`mlflow run` and `vitcifar` log to one"
    ours = store.get_run(store.get_model_version("vitcifar", "1").run_id)
    assert run.data.metrics["test/accuracy"] == ours.data.metrics["test/accuracy"]


def test_the_version_has_its_latency_table(pipeline_run, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.connect(f"sqlite:///{pipeline_run[0]}/mlflow.db"))
    version = store.get_model_version("vitcifar", "1")
    tags = Registry("vitcifar").show(1).tags
    (tag,) = [key for key in tags if key.startswith("latency")]
    folder = store.get_run(version.run_id).info.artifact_uri
    rows = json.loads(mlflow.artifacts.load_text(f"{folder}/latency/{tag.partition('/')[2]}.json"))["rows"]
    assert {row["format"] for row in rows} == {"torch", "onnx-fp32"}
    assert all(0 < row["p50_ms"] <= row["p95_ms"] for row in rows)
    accuracies = {row["format"]: row["accuracy"] for row in rows}
    ours = store.get_run(store.get_model_version("vitcifar", "1").run_id).data.metrics["test/accuracy"]
    assert accuracies == {"torch": ours, "onnx-fp32": ours}


def test_a_version_is_promoted_and_rolled_back_through_the_project(pipeline_run, store, monkeypatch):
    """Version 2 is the same release once more: not worse than the champion, image by image."""
    folder, first = pipeline_run[0], store.get_model_version("vitcifar", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.connect(f"sqlite:///{folder}/mlflow.db"))
    kept = {key: value for key, value in first.tags.items() if "/" not in key}
    model_id = first.source.removeprefix("models:/")
    store.create_model_version("vitcifar", first.source, run_id=first.run_id, tags=kept, model_id=model_id)
    project = ["--env-manager", "local", "--experiment-name", "promotions"]
    done = mlflow_run(
        folder,
        "-e",
        "promote",
        *project,
        entry={"version": "2", "require": "not-clearly-worse", "reason": "it is Monday"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^passed +champion +against version 1", done.stdout, flags=re.MULTILINE)
    assert "champion now points to version 2 (was 1)." in done.stdout
    done = mlflow_run(folder, "-e", "rollback", *project, entry={"reason": "it's not"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert store.get_model_version_by_alias("vitcifar", "champion").version in (1, "1")
    lines = vitcifar(folder, "history").stdout.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["promote", "promote", "rollback"]
    assert re.search(r"5/5 +it is Monday$", lines[2]) and lines[3].endswith("it's not")


def test_predict_classifies_images_and_reports_bad_files(pipeline_run):
    from PIL import Image

    folder = pipeline_run[0]
    Image.fromarray(np.full((40, 30, 3), 90, np.uint8)).save(folder / "grey.png")
    (folder / "notes.png").write_text("not an image")
    done = vitcifar(folder, "predict", "grey.png", "notes.png", "missing.png", "--format", "json")
    assert done.returncode == 1
    answer = json.loads(done.stdout.splitlines()[0])
    assert answer["version"] == 1
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    errors = [json.loads(line)["error"] for line in done.stdout.splitlines()[1:]]
    assert "notes.png" in errors[0] and "missing.png" in errors[1]
    assert "2 of 3 files could not be classified" in done.stderr


def test_without_network_the_default_run_stops_and_leaves_no_run(folder, monkeypatch):
    """Python's downloads use a proxy that does not exist."""
    monkeypatch.chdir(folder)
    settle(folder, monkeypatch)
    for name, value in {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(urllib.request, "_opener", None)  # which keeps the proxies that it was made with
    monkeypatch.setenv("TORCH_HOME", str(folder))
    done = CliRunner().invoke(main, ["train"])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert "--preset digits" in done.stderr
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("variable", "cure"),
    [("", "--output-dir"), ("VITCIFAR_CACHE", "set VITCIFAR_CACHE"), ("HOME", "set VITCIFAR_CACHE")],
    ids=["output_dir", "VITCIFAR_CACHE", "HOME"],
)
def test_a_folder_that_cannot_be_written_stops_a_run_before_it_starts(tmp_path, monkeypatch, variable, cure):
    monkeypatch.delenv("VITCIFAR_CACHE", raising=False)
    (tmp_path / "file").touch()
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "file" / "x"))
    config = resolve("digits", output_dir=str(tmp_path / ("runs" if variable else "file")))
    with pytest.raises(ConfigError, match=rf"The folder {tmp_path}/file.* cannot be written to \(.*\): .*{cure}"):
        pipeline.check(config)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


CONDA = """#!/usr/bin/env bash
# Stands in for conda: its one environment is the one that runs the tests.
case "$1" in
--help) echo usage ;;
env) [ "$2" = list ] && echo '{"envs": []}' || echo "$@" >>"$CONDA_LOG" ;;
info) echo '{}' ;;
esac
"""


def test_mlflow_run_creates_the_conda_environment_and_runs_in_it(folder):
    home = folder / "conda"
    (home / "bin").mkdir(parents=True)
    for name, text in {"conda": CONDA, "activate": "#!/usr/bin/env bash\n"}.items():
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755 | stat.S_IXUSR)
    (home / "etc/profile.d").mkdir(parents=True)
    (home / "etc/profile.d/conda.sh").write_text("conda() { :; }\n")
    log = folder / "conda.log"
    more = {"MLFLOW_CONDA_HOME": str(home), "CONDA_LOG": str(log)}
    done = mlflow_run(folder, "-e", "versions", entry={"model_name": "nobody"}, **more)
    assert "--file" in log.read_text() and "conda.yaml" in log.read_text()
    assert done.returncode == 1
    assert "There is no model 'nobody'" in done.stderr
