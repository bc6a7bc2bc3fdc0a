"""Builds a release from a trained network: export, checks, one MLflow model with three flavors. All or nothing."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.models import Model
from PIL import Image

from vitcifar import __version__
from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.data.splits import Splits
from vitcifar.inference.image_statistics import ImageStatistics
from vitcifar.inference.openvino_session import fastest_precision
from vitcifar.presets import run_name
from vitcifar.release import flavor
from vitcifar.release.export import export_onnx, trace
from vitcifar.release.manifest import INT8_FILE, ONNX_FILE, Manifest
from vitcifar.release.parity import check_parity
from vitcifar.release.reference import choose_reference, embed, write_reference
from vitcifar.run import model_name
from vitcifar.tracking import reaching

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from vitcifar.model.network import Classifier

CHECKOUT = Path(__file__).resolve().parents[2]  # if the package is not installed elsewhere
MODEL_TAG = "vitcifar_model"  # on MLflow's logged model: the registered model that it is built for
STAGING_PREFIX = "vitcifar-"
MAX_EXAMPLES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """A release in MLflow's artifact store that is not registered yet."""

    manifest: Manifest
    model_id: str  # of MLflow's logged model
    digest: str  # sha256 of its release.json
    program: "ExportedProgram"  # that its files were made from


def build_release(
    network: "Classifier",
    *,
    splits: Splits,
    evaluation: Mapping[str, Any],
    config: TrainConfig,
    run_id: str,
    int8: bool = False,
    openvino: bool = False,
    checks: Mapping[str, Any] | None = None,
) -> Built:
    """Export the network, check its parity on the test images and store the release as a logged model of the run.

    `checks` are recorded beside its own. With `int8` the int8 candidates are evaluated too, with `openvino` the float
    file in OpenVINO, and an accepted one serves, else the float file. Raises ReleaseError when a check fails: nothing
    is stored then.
    """
    release = describe(network, splits, evaluation, config, run_id)
    with tempfile.TemporaryDirectory(prefix=f"{STAGING_PREFIX}{os.getpid()}-") as folder:
        staged = Path(folder) / "staged"
        staged.mkdir()
        onnx_path = staged / ONNX_FILE
        program = trace(network)
        labels: dict[str, Any] = {"class_names": release.class_names, "release_id": release.release_id}
        _export_float(network, onnx_path, program, own_graph=openvino, **labels)
        embeddings: list[np.ndarray] = []
        parity = check_parity(network, onnx_path, splits.test, embeddings=embeddings)
        statistics = ImageStatistics.fit(splits.train.images, splits.validation.images)
        own = {"parity": dataclasses.asdict(parity), "image_statistics": statistics.to_dict()}
        release = _add_checks(release, {**(checks or {}), **own})
        if int8:
            release = _try_int8(network, onnx_path, splits, release)
        if openvino:
            release = _try_openvino(onnx_path, splits, release)
        if release.serving_format != "onnx-fp32":
            chosen = splits.test.subset(choose_reference(len(splits.test)))
            embeddings = [embed(staged / release.serves, chosen.images, openvino=release.openvino)]
        if embeddings:
            write_reference(staged, np.concatenate(embeddings))
        put_examples(splits.test, staged / "examples")
        digests: list[str] = []  # filled by the flavor: MLflow deletes the folder before `log` returns
        with reaching(mlflow.get_tracking_uri()), temporaries_in(staged.parent):
            info = Model.log(
                artifact_path=None,
                name=model_name(f"release of {run_name(config)}"),
                step=-1,  # MLflow would attach all metrics of a step, also those of the system; link_model does
                flavor=flavor,
                run_id=run_id,
                tags={MODEL_TAG: release.model_name},
                program=program,
                staged=staged,
                release=release,
                digests=digests,
                validate_serving_input=False,  # it would load the model, and rewrite MLmodel after it was hashed
            )
    return Built(manifest=release, model_id=info.model_id, digest=digests[0], program=program)


def _export_float(network: "Classifier", path: Path, program: Any, *, own_graph: bool, **labels: Any) -> None:
    """Write the float file, by torch's exporter or as our own graph.

    The exporter takes minutes for the many small operations of merging, and its graph is slower in OpenVINO.
    """
    if network.token_merging or own_graph:
        from vitcifar.release.onnx_graph import save_graph

        save_graph(network, path, **labels)
    else:
        export_onnx(network, path, **labels, program=program)


@contextlib.contextmanager
def temporaries_in(folder: Path) -> Iterator[None]:
    """Make libraries create their temporary files in a folder: those of a killed process are found there."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def put_examples(test: ImageDataset, folder: Path) -> None:
    """Save a test image of each of the first classes, as examples of the page."""
    folder.mkdir()
    for label in range(min(MAX_EXAMPLES, len(test.class_names))):
        indices = np.flatnonzero(test.labels == label)
        if len(indices):
            Image.fromarray(test.images[int(indices[0])]).save(folder / f"{label:02}.png")


def _try_int8(network: "Classifier", onnx_path: Path, splits: Splits, release: Manifest) -> Manifest:
    from vitcifar.release.quantize import evaluate_served, quantize

    candidates = quantize(network, onnx_path, splits, class_names=release.class_names, release_id=release.release_id)
    release = _add_checks(
        release, {"int8": {candidate.kind: dataclasses.asdict(candidate) for candidate in candidates}}
    )
    if not any(candidate.accepted for candidate in candidates):
        return release
    served = evaluate_served(onnx_path.with_name(INT8_FILE), onnx_path, splits, release)
    return dataclasses.replace(_add_checks(release, {"served": served}), serves=INT8_FILE)


def _try_openvino(onnx_path: Path, splits: Splits, release: Manifest) -> Manifest:
    from vitcifar.release.quantize import evaluate_served, try_openvino

    if not (precision := fastest_precision()):
        return release
    candidate = try_openvino(onnx_path, splits, precision)
    release = _add_checks(release, {"openvino": {precision: dataclasses.asdict(candidate)}})
    if not candidate.accepted:
        return release
    return _add_checks(release, {"served": evaluate_served(onnx_path, onnx_path, splits, release, openvino=precision)})


def _add_checks(release: Manifest, checks: Mapping[str, Any]) -> Manifest:
    return dataclasses.replace(release, checks={**release.checks, **checks})


def describe(
    network: "Classifier", splits: Splits, evaluation: Mapping[str, Any], config: TrainConfig, run_id: str
) -> Manifest:
    """The manifest of a network, without the checks that need the exported file and without the hashes."""
    from vitcifar.model.network import weights_sha256

    weights = weights_sha256(network)
    identity: list[Any] = [weights, splits.class_names, network.image_size, splits.fingerprint]
    if network.token_merging:  # other outputs with the same weights
        identity.append({"token_merging": network.token_merging})
    if network.token_merging and network.merging_schedule != "constant":
        identity.append({"merging_schedule": network.merging_schedule})
    return Manifest(
        release_id=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
        model_name=config.model_name,
        class_names=tuple(splits.class_names),
        image_size=network.image_size,
        temperature=float(network.temperature),
        threshold=evaluation.get("threshold", 0.0),
        fingerprint=splits.fingerprint,
        run_id=run_id,
        preprocessing={"resize": "bilinear, antialiased", **network.constants},
        counts=splits.counts(),
        config=dataclasses.asdict(config),
        git=git_state(),
        environment=environment(),
        checks={"test": dict(evaluation), "weights_sha256": weights},
    )


@functools.cache
def git_state() -> dict[str, Any]:
    """The commit of this checkout and whether it is dirty; None each when the code is not in a checkout of its own.

    An installed package may lie inside the repository of another project, whose commit says nothing about this code.
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if (CHECKOUT / ".git").exists() and git("ls-files", __file__):
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or no repository
    return {"commit": None, "dirty": None}


def environment() -> dict[str, Any]:
    """Python, platform, the version of every installed package, and what decides the last bits of a training."""
    from vitcifar.training.numerics import numerics

    packages = {}
    for dist in importlib.metadata.distributions():
        with contextlib.suppress(OSError, KeyError):  # a broken one has neither name nor version, or raises
            metadata = dist.metadata  # read from disk at every access
            if metadata["Name"] and metadata["Version"]:
                packages[metadata["Name"]] = metadata["Version"]
    return {
        "vitcifar": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numerics": numerics(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
