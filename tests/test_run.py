"""What a run is in MLflow: its description, tables, datasets and logged models, read back through MLflow's own API."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from vitcifar import tracking
from vitcifar.experiments.logs import compare_logs
from vitcifar.run import MAX_NOTE, SPEED, Images, model_name

FINGERPRINT = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def logged(workspace):
    """A run of two epochs with a checkpoint, on SQLite and on a server."""
    with tracking.start_run(experiment="runs", output_dir=workspace / "runs", run_name="mine") as run:
        for split, num in (("validation", 6), ("test", 4)):
            profile = {"num_images": num, "num_classes": 2}
            run.log_dataset(split, FINGERPRINT, name="birds", location=str(workspace), profile=profile)
        for step, accuracy in ((5, 0.75), (10, 0.5)):
            run.log(step, {"step/loss": 1.0, "validation/accuracy": accuracy, SPEED: 9.5})
        run.log(0, {"test/accuracy": 0.625})
        run.note("**Test accuracy 0.625**")
        images = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 255)]
        run.log_table("evaluation/mistakes", {"image": images, "label": ["cat", "dog"], "confidence": [0.9, 0.8]})
        path = run.folder / "best.pt"
        path.write_bytes(b"weights")
        run.log_checkpoint("vit.tiny epoch 1", path, 5, {"epoch": 1}, {"validation": 5, "test": 0})
    (made,) = run.client.get_run(run.run_id).outputs.model_outputs
    return run, made.model_id


def test_the_description_is_the_note_and_a_long_one_is_cut(logged):
    run, _ = logged
    assert run.client.get_run(run.run_id).data.tags["mlflow.note.content"] == "**Test accuracy 0.625**"
    with tracking.start_run(experiment="runs", output_dir=run.folder.parent) as other:
        other.note("x" * 9000)
    assert len(other.client.get_run(other.run_id).data.tags["mlflow.note.content"]) == MAX_NOTE


def test_a_dataset_has_a_schema_a_profile_and_the_whole_fingerprint(logged):
    run, _ = logged
    found = {entry.dataset.name: entry.dataset for entry in run.client.get_run(run.run_id).inputs.dataset_inputs}
    assert sorted(found) == ["birds-test", "birds-validation"]
    profile, schema = json.loads(found["birds-test"].profile), json.loads(found["birds-test"].schema)
    assert profile == {"num_images": 4, "num_classes": 2, "fingerprint": FINGERPRINT}
    (images,) = json.loads(schema["mlflow_tensorspec"]["features"])
    assert images["tensor-spec"] == {"dtype": "uint8", "shape": [-1, -1, -1, 3]}
    assert found["birds-test"].digest == FINGERPRINT[:36]
    assert Images("a", FINGERPRINT, "/tmp", {}).profile == {"fingerprint": FINGERPRINT}


def test_the_checkpoint_is_a_logged_model_that_a_search_by_accuracy_finds(logged):
    run, model_id = logged
    experiment = run.client.get_run(run.run_id).info.experiment_id
    order = [{"field_name": "metrics.validation/accuracy", "ascending": False}]
    found = mlflow.search_logged_models([experiment], order_by=order, output_format="list")[0]
    assert (found.model_id, found.name, found.source_run_id) == (model_id, "vit_tiny epoch 1", run.run_id)
    assert found.params == {"epoch": "1", "step": "5", "checkpoint": str(run.folder / "best.pt")}
    linked = {metric.key: (metric.value, metric.step, metric.dataset_name) for metric in found.metrics}
    assert linked == {
        "validation/accuracy": (0.75, 5, "birds-validation"),  # of the best epoch, not of the last one
        "test/accuracy": (0.625, 0, "birds-test"),
    }, "no metric of the system, and none of a step"


def test_the_weights_of_a_checkpoint_are_not_copied(logged):
    run, model_id = logged
    files = [item.path for item in run.client.list_logged_model_artifacts(model_id)]
    assert files == ["MLmodel"]
    (output,) = run.client.get_run(run.run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model_id, 5)


def test_a_linked_metric_is_the_point_of_the_run_and_not_a_second_one(logged):
    run, _ = logged
    history = run.client.get_metric_history(run.run_id, "validation/accuracy")
    assert sorted((metric.step, metric.value) for metric in history) == [(5, 0.75), (10, 0.5)]
    assert compare_logs(run.run_id).differences == ()


def test_our_own_system_metrics_are_in_both_trackers(logged):
    run, _ = logged
    assert compare_logs(run.run_id).num_points == 7, "two of the speed; those that MLflow samples are not compared"


def test_a_run_that_evaluates_a_model_has_it_as_input(logged, workspace):
    _, model_id = logged
    with tracking.start_run(experiment="runs", output_dir=workspace / "runs", run_name="again") as run:
        run.log_dataset("test", FINGERPRINT, name="cats", location="/tmp", profile={"num_images": 4})
        run.log(0, {"test/accuracy": 0.25})
        run.link_model(model_id, {"test": 0})
    found = run.client.get_run(run.run_id)
    assert [entry.model_id for entry in found.inputs.model_inputs] == [model_id] and not found.outputs.model_outputs
    metrics = mlflow.get_logged_model(model_id).metrics
    assert {(m.dataset_name, m.value) for m in metrics if m.key == "test/accuracy"} >= {("cats-test", 0.25)}


def test_a_table_is_read_back_with_its_images(logged, tmp_path):
    run, _ = logged
    experiment = run.client.get_run(run.run_id).info.experiment_id
    table = run.client.load_table(experiment, "evaluation/mistakes.json", [run.run_id])
    assert table[["label", "confidence"]].to_dict("list") == {"label": ["cat", "dog"], "confidence": [0.9, 0.8]}
    files = [run.client.download_artifacts(run.run_id, cell["filepath"], str(tmp_path)) for cell in table["image"]]
    assert [Image.open(file).getpixel((0, 0)) for file in files] == [(0, 0, 0), (255, 255, 255)]


def test_a_name_with_characters_that_mlflow_refuses_is_made_valid(logged):
    run, _ = logged
    name = model_name("a/b:c.d%e\"f'g lr1.2e-3")
    model = run.client.create_logged_model("0", name=name)
    assert model.name == name == "a_b_c_d_e_f_g lr1_2e-3"


def test_a_run_that_mlflow_run_named_at_random_gets_the_name_and_one_that_a_person_named_keeps_it(
    workspace, monkeypatch
):
    client = mlflow.MlflowClient()
    for given, expected in ((None, "vit_tiny"), ("monday", "monday"), ("my-run-1", "my-run-1")):
        made = client.create_run("0", run_name=given)
        monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
        with tracking.start_run(experiment="runs", output_dir=Path("runs"), run_name="vit_tiny") as run:
            pass
        assert client.get_run(run.run_id).info.run_name == expected
        assert run.event_files.name.split()[0] == expected
