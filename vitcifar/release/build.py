"""From a trained network to one stored model: export, checks, three flavors. All or nothing."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from PIL import Image

from vitcifar import __version__
from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.data.splits import Splits
from vitcifar.release import flavor
from vitcifar.release.export import export_onnx, trace
from vitcifar.release.manifest import INT8_FILE, MANIFEST_FILE, ONNX_FILE, Manifest, sha256_of
from vitcifar.release.parity import check_parity
from vitcifar.tracking import reaching

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from vitcifar.model.network import Classifier

LOGGED_NAME = "release"
MODEL_TAG = "vitcifar_model"  # on MLflow's logged model: the registered model it is meant for
STAGING_PREFIX = "vitcifar-"
MAX_EXAMPLES = 12


def build_release(
    network: "Classifier",
    *,
    splits: Splits,
    evaluation: Mapping[str, Any],
    config: TrainConfig,
    run_id: str,
    int8: bool = False,
) -> tuple[Manifest, str, str]:
    """Export the network, check it on the test images and store it; returns the manifest, MLflow's id of the model and
    the digest of its release.json.

    With `int8` the int8 forms are tried too; the best one serves if it earned its place, else the float file does.
    Raises ReleaseError when a proof fails: nothing is registered then.
    """
    release = describe(network, splits=splits, evaluation=evaluation, config=config, run_id=run_id)
    with tempfile.TemporaryDirectory(prefix=f"{STAGING_PREFIX}{os.getpid()}-") as folder:
        staged = Path(folder) / "staged"
        staged.mkdir()
        onnx_path = staged / ONNX_FILE
        program = trace(network)
        export_onnx(network, onnx_path, class_names=release.class_names, release_id=release.release_id, program=program)
        parity = check_parity(network, onnx_path, splits.test)
        release = dataclasses.replace(release, checks={**release.checks, "parity": parity.to_dict()})
        if int8:
            release = _try_int8(network, onnx_path, splits, release)
        put_examples(splits.test, staged / "examples")
        model_id, digest = log_release(program, staged, release)
    return release, model_id, digest


@contextlib.contextmanager
def temporaries_in(folder: Path) -> Iterator[None]:
    """Let temporary files of others be made in a folder, so that what a killed process leaves lies in one place."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def put_examples(test: ImageDataset, folder: Path) -> None:
    """A test image of each of the first classes, for the page to show."""
    folder.mkdir()
    for label in range(min(MAX_EXAMPLES, len(test.class_names))):
        indices = np.flatnonzero(test.labels == label)
        if len(indices):
            Image.fromarray(test.images[int(indices[0])]).save(folder / f"{label:02}.png")


def _try_int8(network: "Classifier", onnx_path: Path, splits: Splits, release: Manifest) -> Manifest:
    from vitcifar.release.quantize import evaluate_served, quantize

    candidates = quantize(network, onnx_path, splits, class_names=release.class_names, release_id=release.release_id)
    checks: dict[str, Any] = {"int8": {candidate.kind: candidate.to_dict() for candidate in candidates}}
    serves = ONNX_FILE
    if any(candidate.accepted for candidate in candidates):
        serves = INT8_FILE
        checks["served"] = evaluate_served(onnx_path.with_name(INT8_FILE), onnx_path, splits, release)
    return dataclasses.replace(release, serves=serves, checks={**release.checks, **checks})


def describe(
    network: "Classifier",
    *,
    splits: Splits,
    evaluation: Mapping[str, Any],
    config: TrainConfig,
    run_id: str,
) -> Manifest:
    """Everything that release.json says but for the checks that need the exported file, and the hashes."""
    from vitcifar.model.network import MEAN, STD, weights_sha256

    weights = weights_sha256(network)
    identity = [weights, splits.class_names, network.image_size, splits.fingerprint]
    return Manifest(
        release_id=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
        model_name=config.model_name,
        class_names=tuple(splits.class_names),
        image_size=network.image_size,
        temperature=float(network.temperature),
        threshold=float(evaluation.get("threshold", 0.0)),
        fingerprint=splits.fingerprint,
        run_id=run_id,
        preprocessing={"resize": "bilinear, antialiased", "mean": list(MEAN), "std": list(STD)},
        counts=splits.counts(),
        config=dataclasses.asdict(config),
        git=git_of(run_id),
        environment=environment(),
        checks={"test": dict(evaluation), "weights_sha256": weights},
    )


def log_release(program: "ExportedProgram", staged: Path, release: Manifest) -> tuple[str, str]:
    """Store the three flavors beside the run; returns MLflow's id of the model and the digest of its release.json."""
    from mlflow.models import Model

    digests: list[str] = []

    class Saver:
        """The flavor, remembering the digest: MLflow deletes the folder before `log` returns."""

        __name__ = flavor.__name__

        def save_model(self, path: str, **kwargs: Any) -> None:
            flavor.save_model(path, **kwargs)
            digests.append(sha256_of(Path(path) / MANIFEST_FILE))

    with reaching(mlflow.get_tracking_uri()), temporaries_in(staged.parent):
        info = Model.log(
            artifact_path=None,
            name=LOGGED_NAME,
            flavor=Saver(),
            run_id=release.run_id,
            tags={MODEL_TAG: release.model_name},
            program=program,
            staged=staged,
            release=release,
        )
    return info.model_id, digests[0]


def git_of(run_id: str) -> dict[str, Any]:
    """The commit that the run recorded, and whether the checkout had been changed."""
    with reaching(mlflow.get_tracking_uri()):
        tags = mlflow.MlflowClient().get_run(run_id).data.tags
    commit = tags.get("git_commit") or tags.get("mlflow.source.git.commit")
    dirty = tags.get("git_dirty")
    return {"commit": commit, "dirty": None if dirty is None else dirty == "true"}


def environment() -> dict[str, Any]:
    """The lock of this environment: Python, platform and every installed package."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "vitcifar": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
