"""Registered versions: evaluated, compared and trained again, each as a run of its own."""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitcifar import tracking
from vitcifar.config import TrainConfig, groups
from vitcifar.data.dataset import ImageDataset
from vitcifar.data.splits import Splits, read_splits
from vitcifar.errors import ConfigError, DataError, ReleaseError
from vitcifar.evaluation.analysis import analyze
from vitcifar.evaluation.calibration import softmax
from vitcifar.evaluation.compare import Comparison, compare_evaluations
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import check_ood
from vitcifar.inference.session import OnnxClassifier
from vitcifar.registry.diff import Difference, compare_sections, flatten, metrics
from vitcifar.registry.registry import Registry
from vitcifar.release.build import environment, git_state
from vitcifar.release.cache import open_network
from vitcifar.release.manifest import Manifest
from vitcifar.report.log import data_name, log_datasets, log_evaluation, log_report, score

OUTPUT_DIR = Path("runs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction:
    """The result of training a version again; the differences explain weights that are not the same."""

    version: int
    same_weights: bool
    differences: tuple[Difference, ...]


def evaluate_version(registry: Registry, spec: str, *, experiment: str, **options: Any) -> tuple[str, Evaluation]:
    """Evaluate the ONNX model of a version on its own test images, or on those that `options` select.

    Only the analysis `full` opens the PyTorch network. Returns the id of the evaluation's run, which is linked to the
    version, and the metrics.
    """
    release = registry.pull(spec)
    config, splits = read_images(release, **options)
    check_ood(config)
    network = open_network(registry.pull(str(release.version), pytorch=True)) if config.analysis == "full" else None
    classifier = OnnxClassifier(release.onnx_path)
    name = f"evaluate-{registry.model_name}-{release.version}"
    tags = {"evaluates": f"models:/{registry.model_name}/{release.version}", "trained_by": release.run_id}
    where = ""
    if not tested_on(release, splits):
        name += "-on-other-images"
        where = ", other than those of its release,"
        tags["other_images"] = "true"
    with tracking.start_run(experiment=experiment, output_dir=OUTPUT_DIR, run_name=name, tags=tags) as run:
        evaluation, logits = evaluate_onnx(classifier, release, splits)
        evaluated = (evaluation, splits.test, softmax(logits, release.temperature))
        log_datasets(run, config, {"test": splits.test}, splits)
        log_evaluation(run, *evaluated)
        if config.analysis == "none":
            return run.run_id, evaluation
        own = trained_on(release, splits)
        analysis = analyze(
            evaluation, splits.test, logits, config, predictor=classifier.logits, trained_on=own, network=network
        )
        title = f"{version_name(release)} on {data_name(config)}"
        note = "" if own else " Its training images are not available, so duplicates of them were not searched."
        subtitle = f"Evaluated on {len(splits.test):,} images{where} with its ONNX model.{note}"
        log_report(run, analysis, *evaluated, title=title, subtitle=subtitle, facts=report_facts(release, run))
    return run.run_id, evaluation


def compare_versions(
    registry: Registry,
    spec: str,
    other_spec: str,
    *,
    experiment: str,
    margin: float = 0.0,
    detectable: float = 0.01,
    **options: Any,
) -> tuple[str, Comparison]:
    """Compare the predictions of two versions, the first against the second, by paired tests on the same images.

    The images are those that both were tested on, unless `options` select others. Returns the id of the comparison's
    run and the verdict. Raises DataError when the two were tested on different images.
    """
    ours, theirs = registry.pull(spec), registry.pull(other_spec)
    config, splits = read_images(ours, theirs, **options)
    title = f"{version_name(ours)} against {version_name(theirs)}"
    tags = {"compares": f"models:/{registry.model_name}/{ours.version}", "against": str(theirs.version)}
    with tracking.start_run(experiment=experiment, output_dir=OUTPUT_DIR, run_name=title, tags=tags) as run:
        log_datasets(run, config, {"test": splits.test}, splits)
        evaluation, logits = evaluate_onnx(OnnxClassifier(ours.onnx_path), ours, splits)
        other, _ = evaluate_onnx(OnnxClassifier(theirs.onnx_path), theirs, splits)
        comparison = compare_evaluations(evaluation, other, margin=margin, detectable=detectable)
        evaluated = (evaluation, splits.test, softmax(logits, ours.temperature))
        log_evaluation(run, *evaluated)
        subtitle = f"Both evaluated on the same {len(splits.test):,} images with their ONNX models."
        facts = report_facts(ours, run) | {"Against": f"{version_name(theirs)}, release {theirs.release_id}"}
        log_report(run, None, *evaluated, title=title, subtitle=subtitle, facts=facts, comparison=comparison)
    return run.run_id, comparison


def reproduce(registry: Registry, spec: str | int) -> Reproduction:
    """Train a version again from its recorded config, as a run that releases nothing, and compare.

    The config neither resumes nor promotes. Raises ReleaseError before training when the images differ, or the config
    is one of another vitcifar; warns when the commit differs.
    """
    from vitcifar import pipeline
    from vitcifar.model.network import weights_sha256

    release = registry.pull(spec)
    assert release.version is not None
    commit, git = release.git.get("commit"), git_state()
    try:
        config = TrainConfig(**{**release.config, "resume": "none", "promote_to": "none"})
    except (TypeError, ConfigError) as error:
        raise ReleaseError(
            f"The config of version {release.version} was recorded by another vitcifar ({error}): "
            f"check out commit {commit or 'not recorded'} and reproduce there."
        ) from error
    splits = read_splits(config)
    if splits.fingerprint != release.fingerprint:
        raise ReleaseError(
            f"The images are not those of version {release.version}: expected fingerprint "
            f"{release.fingerprint[:16]}…, got {splits.fingerprint[:16]}…. Restore the images and try again."
        )
    if commit != git["commit"]:
        warnings.warn(
            f"Version {release.version} was trained with commit {commit or 'not recorded'}, this is "
            f"{git['commit'] or 'no commit'}: differences may come from the code.",
            stacklevel=2,
        )
    network = pipeline.make_network(config, splits.class_names)
    with pipeline.start_run(config, run_name=f"reproduce-{config.model_name}") as run:
        _, evaluation = pipeline.fit_and_test(run, network, splits, config)
    recorded, weights = release.checks.get("weights_sha256"), weights_sha256(network)
    differences = (
        *compare_sections("weights", {"sha256": recorded}, {"sha256": weights}),
        *compare_sections("metrics", metrics(release.checks.get("test", {})), metrics(evaluation.to_dict())),
        *compare_sections("code", release.git, git),
        *compare_sections("environment", flatten(release.environment), flatten(environment())),
    )
    return Reproduction(version=release.version, same_weights=recorded == weights, differences=differences)


def read_images(*releases: Manifest, **options: Any) -> tuple[TrainConfig, Splits]:
    """The config of the first release with other `options`, and its images.

    Raises DataError when their classes are not those of every release, or when a release was tested on other images
    than these and no options of the data select them; with such options, warns of it.
    """
    config = TrainConfig(**{**releases[0].config, **options})
    splits = read_splits(config)
    for release in releases:
        if splits.class_names != release.class_names:
            raise DataError(
                f"{version_name(release)} has the classes {', '.join(release.class_names)}, the images "
                f"have {', '.join(splits.class_names)}: name images of the same classes with --data and --data-dir."
            )
        if not tested_on(release, splits):
            other = f"{version_name(release)} was tested on other images than these"
            if not any(groups()[name] == "Data" for name in options):
                raise DataError(
                    f"{other} (fingerprint {splits.fingerprints['test'][:12]}): restore them, or name images on "
                    "purpose with --data, --data-dir and --test-per-class."
                )
            warnings.warn(f"{other}.", stacklevel=3)
    return config, splits


def tested_on(release: Manifest, splits: Splits) -> bool:
    """Whether a version was tested on this test split; an old release has only the fingerprint of all splits."""
    recorded = release.checks.get("test", {}).get("fingerprint")
    return release.fingerprint == splits.fingerprint if recorded is None else recorded == splits.fingerprints["test"]


def evaluate_onnx(classifier: OnnxClassifier, release: Manifest, splits: Splits) -> tuple[Evaluation, np.ndarray]:
    """The metrics of a version's ONNX model on the test split, and its logits (N, K)."""
    logits = classifier.logits([*splits.test.images])
    return score(logits, splits, release.temperature, release.threshold), logits


def recorded_splits(release: Manifest) -> Splits | None:
    """The splits that a version was trained on; None when they are missing or have changed."""
    try:
        splits = read_splits(TrainConfig(**release.config))
    except DataError:
        return None
    return splits if splits.fingerprint == release.fingerprint else None


def trained_on(release: Manifest, splits: Splits) -> Mapping[str, ImageDataset]:
    """The training and validation images of a version; empty when they are missing or have changed."""
    own = splits if splits.fingerprint == release.fingerprint else recorded_splits(release)
    return {"train": own.train, "validation": own.validation} if own else {}


def version_name(release: Manifest) -> str:
    return f"{release.model_name} {release.version}"


def report_facts(release: Manifest, run: tracking.Run) -> dict[str, str]:
    """The facts under the title of a version's report."""
    return {
        "Version": version_name(release),
        "Release": release.release_id,
        "Trained by run": release.run_id,
        "Network": f"{release.config.get('arch', '')}, {release.image_size} pixels",
        "Run": run.run_id,
    }
