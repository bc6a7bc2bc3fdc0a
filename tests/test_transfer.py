"""Transfer learning: a version trained on six classes of real images, fine-tuned on few images of four others."""

import os
from pathlib import Path

import numpy as np
import pytest

from vitcifar import pipeline, tracking
from vitcifar.networks import make_network
from vitcifar.presets import resolve
from vitcifar.training.loop import fit

SAMPLE = os.environ.get("VITCIFAR_SAMPLE")
FEW = ("cat", "dog", "ship", "truck")
NUM_FEW = 10  # training images of each


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE, reason="VITCIFAR_SAMPLE is not set to a folder of CIFAR-10 images")
def test_fine_tuning_a_registered_version_beats_training_from_scratch_on_few_images_over_three_seeds(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        for folder in (Path(SAMPLE) / split).iterdir():
            target = tmp_path / ("few" if folder.name in FEW else "many") / split
            target.mkdir(parents=True, exist_ok=True)
            (target / folder.name).symlink_to(folder)
    tracking.connect("sqlite:///mlflow.db")
    given = {"data": "folder", "augmentation": "crop-flip", "analysis": "none", "promote_to": "none", "epochs": 12}
    base = {**given, "data_dir": str(tmp_path / "many"), "train_per_class": 130, "epochs": 15, "benchmark_runs": 0}
    version = pipeline.train(resolve("digits", **base)).version
    accuracies = {"none": [], f"models:/vitcifar/{version}": []}
    for weights, measured in accuracies.items():
        for seed in range(3):
            small = {"data_dir": str(tmp_path / "few"), "train_per_class": NUM_FEW, "validation_per_class": 50}
            config = resolve("digits", **given, **small, weights=weights, seed=seed, data_seed=seed)
            splits = pipeline.read_splits(config)
            network = make_network(config, splits.class_names)
            folder = tmp_path / f"{len(measured)}-{weights[:4]}"
            outcome = fit(network, splits.train, splits.validation, config, log=lambda *_: None, folder=folder)
            measured.append(outcome.best_metrics["validation/accuracy"])
    scratch, transferred = accuracies.values()
    assert np.mean(transferred) > np.mean(scratch), accuracies
