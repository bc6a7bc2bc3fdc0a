"""Release folders and versions made without training."""

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from support.toys import make_onnx

from vitcifar.registry.registration import register
from vitcifar.release import build
from vitcifar.release.build import MODEL_TAG, build_release
from vitcifar.release.manifest import LOADER_MODULE, Manifest, read_manifest, write_manifest

CHECKS = {"parity": {"max_logit_difference": 0.0}, "test": {"accuracy": 0.5}}


MLMODEL = """flavors:
  onnx: {code: null, data: model.onnx}
  python_function: {loader_module: %s}
  pytorch: {code: null, model_data: data}
"""


def make_release(folder: Path, release_id: str = "toy", **fields: Any) -> str:
    """A whole release around the toy ONNX file, as publishing leaves it; returns its digest."""
    (folder / "data").mkdir(parents=True)
    make_onnx(folder / "model.onnx", release_id=release_id)
    (folder / "data" / "model.pt2").write_bytes(b"not opened by anything that serves")
    (folder / "MLmodel").write_text(MLMODEL % LOADER_MODULE)
    release = Manifest(
        release_id=release_id,
        class_names=("red", "green", "blue"),
        image_size=32,
        temperature=1.0,
        fingerprint="f" * 64,
        **{"model_name": "toy", "run_id": "r" * 32, **fields},
    )
    return write_manifest(release, folder)


def export_own_graph(patch: pytest.MonkeyPatch) -> None:
    """Make the float files of releases our own graph, as with token merging, where not torch's exporter is tested: it
    takes 7 s of CPU."""
    export = build._export_float
    patch.setattr(build, "_export_float", lambda *given, own_graph, **labels: export(*given, own_graph=True, **labels))


def publish(network: Any, **more: Any) -> int:
    """Build a release of a network and register it; returns the version's number."""
    built = build_release(network, **more)
    return register(built.manifest, built.model_id, built.digest)


def add_version(folder: Path, release_id: str, model_name: str = "toy") -> int:
    """Register a toy release as publishing does, without a network to train and export."""
    model, digest = store_release(folder, release_id, model_name)
    release = read_manifest(folder / release_id / "release.json")
    return register(release, model.model_id, digest)


def store_release(folder: Path, release_id: str, model_name: str = "toy", *, files: str = "*") -> tuple[Any, str]:
    """Store a toy release (or only some files of it) as publishing does before it registers; the digest too."""
    client = mlflow.MlflowClient()
    run = client.create_run("0")
    shutil.rmtree(folder / release_id, ignore_errors=True)
    digest = make_release(folder / release_id, release_id, model_name=model_name, run_id=run.info.run_id, checks=CHECKS)
    tags = {MODEL_TAG: model_name}
    model = client.create_logged_model("0", name="release", source_run_id=run.info.run_id, tags=tags)
    if files == "*":
        client.log_model_artifacts(model.model_id, str(folder / release_id))
    for path in sorted((folder / release_id).glob(files)) if files != "*" else ():
        client.log_model_artifact(model.model_id, str(path))
    return model, digest
