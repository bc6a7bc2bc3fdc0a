"""Each disk that a run writes to becomes full: one sentence names it, the run is FAILED, and goes on with room."""

import shutil
import sqlite3
import tempfile
import threading
from pathlib import Path

import mlflow
import pytest
import torch
from support.disk import fill

from vitcifar import tensorboard, tracking
from vitcifar.errors import TrackingError
from vitcifar.release.build import build_release


def many_points(run):
    for step in range(2, 5):
        run.log(step, {f"train/metric {number}": 1.0 for number in range(400)})


def histogram_at_the_end(run):
    run.log_histograms(2, {str(number): torch.randn(1000) for number in range(30)})


WAYS = {
    "sqlite": ("mlflow.db", many_points),
    "artifacts": ("artifacts", lambda run: run.log_text("big.txt", "x" * 500_000)),
    "event files": ("runs", many_points),
    "event files at the end": ("runs", histogram_at_the_end),
}


@pytest.mark.parametrize(
    "way", [name if name == "sqlite" else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
)
def test_a_full_disk_fails_the_run_with_one_sentence_and_the_run_can_go_on(
    folder, small_disk, monkeypatch, caplog, way
):
    place, write = WAYS[way]
    places = {name: (small_disk if name == place else folder) / name for name in ("mlflow.db", "artifacts", "runs")}
    if way == "sqlite":
        shutil.move(folder / "mlflow.db", small_disk)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{places['mlflow.db']}")
    tracking.connect()
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)  # what a thread raises, as TensorBoard's does
    mlflow.MlflowClient().create_experiment("x", artifact_location=str(places["artifacts"]))
    with pytest.raises(TrackingError) as raised, tracking.start_run(experiment="x", output_dir=places["runs"]) as run:
        run.log(1, {"train/loss": 1.0})
        fill(small_disk)
        write(run)
    assert "is full" in str(raised.value) and str(small_disk) in str(raised.value)
    assert "Traceback" not in caplog.text and not printed
    with sqlite3.connect(places["mlflow.db"]) as store:
        assert store.execute("select status from runs").fetchall() == [("FAILED",)]
    (small_disk / "ballast").unlink()
    with tracking.start_run(experiment="x", output_dir=places["runs"], run_id=run.run_id) as again:
        again.log(500, {"train/loss": 0.5})
    assert again.client.get_run(run.run_id).info.status == "FINISHED"
    assert ("train/loss", 500, 0.5) in tensorboard.read_points(again.event_files)
    assert not [path for path in Path(places["mlflow.db"]).parent.iterdir() if path.name.endswith(".reserve")]
    mlflow.set_tracking_uri(None)


@pytest.mark.slow
@pytest.mark.parametrize("full", [True, False], ids=["before the export", "after the ONNX file"])
def test_a_full_folder_of_temporary_files_fails_the_run_while_its_release_is_built(
    registry, published, small_disk, monkeypatch, full
):
    """2 MB are enough for the ONNX file, and not for the pt2 beside it."""
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    build = {"splits": published.splits, "evaluation": {}, "config": published.config}
    with (
        pytest.raises(TrackingError, match=f"The disk of {small_disk} is full: free space there, then type"),
        tracking.start_run(experiment="x", output_dir=published.folder / "runs") as run,
    ):
        if full:
            fill(small_disk)
        build_release(published.networks[1], run_id=run.run_id, **build)
    assert run.client.get_run(run.run_id).info.status == "FAILED"
    assert not [path for path in small_disk.iterdir() if path.name.startswith("vitcifar")]
