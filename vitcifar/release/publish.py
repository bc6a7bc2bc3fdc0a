"""From a trained network to a registered version: export, proof, one model, one registration. All or nothing."""

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
from mlflow.exceptions import MlflowException
from PIL import Image

from vitcifar import __version__
from vitcifar.config import TrainConfig
from vitcifar.data.pictures import Pictures
from vitcifar.data.splits import Splits
from vitcifar.release import flavor
from vitcifar.release.bundle import INT8_FILE, ONNX_FILE, RELEASE_FILE, Release, served_score, sha256_of
from vitcifar.release.export import export_onnx, trace
from vitcifar.release.parity import check_parity
from vitcifar.release.registry import check_model_name
from vitcifar.tracking import reaching

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from vitcifar.training.network import Classifier

LOGGED_NAME = "release"
MODEL_TAG = "vitcifar_model"  # on MLflow's logged model: the registered model it is meant for
LINK_TAG = "mlflow.modelVersions"  # MLflow's own: its page of a logged model shows the versions
STAGING_PREFIX = "vitcifar-"
MAX_EXAMPLES = 12


def publish(
    network: "Classifier",
    *,
    splits: Splits,
    evaluation: Mapping[str, Any],
    config: TrainConfig,
    run_id: str,
    int8: bool = False,
) -> int:
    """Export the network, prove it on the test pictures, register it; returns the version's number.

    With `int8` the int8 forms are tried too; the best one serves if it earned its place, else the float file does.
    Raises ReleaseError when a proof fails: nothing is registered then.
    """
    check_model_name(config.model_name)
    release = describe(network, splits=splits, evaluation=evaluation, config=config, run_id=run_id)
    with tempfile.TemporaryDirectory(prefix=f"{STAGING_PREFIX}{os.getpid()}-") as folder:
        staged = Path(folder) / "staged"
        staged.mkdir()
        onnx_path = staged / ONNX_FILE
        program = trace(network)
        export_onnx(network, onnx_path, class_names=release.class_names, release_id=release.release_id, program=program)
        parity = check_parity(network, onnx_path, splits.test)
        release = dataclasses.replace(release, proofs={**release.proofs, "parity": parity.to_dict()})
        if int8:
            release = _try_int8(network, onnx_path, splits, release)
        put_examples(splits.test, staged / "examples")
        model_id, digest = log_release(program, staged, release)
    return register(release, model_id, digest)


@contextlib.contextmanager
def temporaries_in(folder: Path) -> Iterator[None]:
    """Let temporary files of others be made in a folder, so that what a killed process leaves lies in one place."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def put_examples(test: Pictures, folder: Path) -> None:
    """A test picture of each of the first classes, for the page to show."""
    folder.mkdir()
    for label in range(min(MAX_EXAMPLES, len(test.class_names))):
        places = np.flatnonzero(test.labels == label)
        if len(places):
            Image.fromarray(test.images[int(places[0])]).save(folder / f"{label:02}.png")


def _try_int8(network: "Classifier", onnx_path: Path, splits: Splits, release: Release) -> Release:
    from vitcifar.release.int8 import consider_int8, prove_served

    candidates = consider_int8(
        network, onnx_path, splits, class_names=release.class_names, release_id=release.release_id
    )
    proofs: dict[str, Any] = {"int8": {candidate.kind: candidate.to_dict() for candidate in candidates}}
    serves = ONNX_FILE
    if any(candidate.kept for candidate in candidates):
        serves = INT8_FILE
        proofs["served"] = prove_served(onnx_path.with_name(INT8_FILE), onnx_path, splits, release)
    return dataclasses.replace(release, serves=serves, proofs={**release.proofs, **proofs})


def describe(
    network: "Classifier",
    *,
    splits: Splits,
    evaluation: Mapping[str, Any],
    config: TrainConfig,
    run_id: str,
) -> Release:
    """Everything that release.json says but for the proofs that need the exported file, and the hashes."""
    from vitcifar.training.network import MEAN, STD, weights_sha256

    weights = weights_sha256(network)
    identity = [weights, splits.class_names, network.image_size, splits.fingerprint]
    return Release(
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
        proofs={"test": dict(evaluation), "weights_sha256": weights},
    )


def log_release(program: "ExportedProgram", staged: Path, release: Release) -> tuple[str, str]:
    """Store the three flavors beside the run; returns MLflow's id of the model and the digest of its release.json."""
    from mlflow.models import Model

    digests: list[str] = []

    class Saver:
        """The flavor, remembering the digest: MLflow deletes the folder before `log` returns."""

        __name__ = flavor.__name__

        def save_model(self, path: str, **kwargs: Any) -> None:
            flavor.save_model(path, **kwargs)
            digests.append(sha256_of(Path(path) / RELEASE_FILE))

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


def register(release: Release, model_id: str, digest: str) -> int:
    """Make the version, with its tags, in one step of the registry: it is there whole or not at all."""
    client = mlflow.MlflowClient()
    tags = {
        "release_digest": digest,
        "release_id": release.release_id,
        "fingerprint": release.fingerprint,
        "parity_max_logit_difference": str(release.proofs["parity"]["max_logit_difference"]),
    }
    if "accuracy" in (score := served_score(release)):
        tags["test_accuracy"] = str(score["accuracy"])
    with reaching(mlflow.get_tracking_uri()):
        try:
            client.create_registered_model(release.model_name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            release.model_name,
            f"models:/{model_id}",
            run_id=release.run_id,
            tags=tags,
            model_id=model_id,
            await_creation_for=0,
        )
        link(release.model_name, int(version.version), model_id)
    return int(version.version)


def link(model_name: str, number: int, model_id: str) -> None:
    """Let MLflow's page of a logged model show its version."""
    versions = json.dumps([{"name": model_name, "version": number}])
    mlflow.MlflowClient().set_logged_model_tags(model_id, {LINK_TAG: versions})


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
