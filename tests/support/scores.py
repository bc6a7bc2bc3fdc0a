"""Versions with the scores that a test wants, for gates and cards."""

import dataclasses
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from support.releases import make_release
from support.toys import COLOURS

from vitcifar.evaluation.metrics import evaluate
from vitcifar.registry.registration import register
from vitcifar.release.manifest import read_manifest

NUM_IMAGES = 400


def scores(num_right: int, *, seed: int = 0, fingerprint: str = "f" * 64) -> dict[str, Any]:
    """An evaluation of 400 images with so many right, which ones is decided by the seed."""
    labels = np.arange(NUM_IMAGES) % 3
    wrong = np.random.default_rng(seed).permutation(NUM_IMAGES)[num_right:]
    answers = labels.copy()
    answers[wrong] = (answers[wrong] + 1) % 3
    logits = np.eye(3)[answers] * 4.0
    return evaluate(logits, labels, COLOURS, fingerprint=fingerprint).to_dict()


def add_version(
    folder: Path,
    name: str,
    test: dict[str, Any],
    *,
    difference: float = 1e-6,
    more: dict[str, Any] | None = None,
    **fields: Any,
) -> int:
    """Register a toy release with these scores, this parity and more checks."""
    parity = {"max_logit_difference": difference, "num_changed": 0, "num_images": NUM_IMAGES, "worst_id": "x"}
    digest = make_release(folder / name, name, checks={"test": test, "parity": parity, **(more or {})}, **fields)
    client = mlflow.MlflowClient()
    run = client.create_run("0")
    model = client.create_logged_model("0", name="release", source_run_id=run.info.run_id)
    client.log_model_artifacts(model.model_id, str(folder / name))
    release = dataclasses.replace(read_manifest(folder / name / "release.json"), run_id=run.info.run_id)
    return register(release, model.model_id, digest)
