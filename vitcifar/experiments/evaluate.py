"""Registered versions examined again, and two of them compared, each as a run of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcifar import tracking
from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.data.splits import Splits, read_splits
from vitcifar.errors import DataError
from vitcifar.evaluation.analysis import analyze
from vitcifar.evaluation.calibration import softmax
from vitcifar.evaluation.compare import Comparison, compare_evaluations
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import read_ood_images
from vitcifar.inference.session import OnnxClassifier
from vitcifar.registry.registry import Registry
from vitcifar.release.load import open_network
from vitcifar.release.manifest import Manifest
from vitcifar.report.log import data_name, log_datasets, log_evaluation, log_report, score

if TYPE_CHECKING:
    pass

OUTPUT_DIR = Path("runs")


def evaluate_version(registry: Registry, spec: str, *, experiment: str, **options: Any) -> tuple[str, Evaluation]:
    """Score a registered version's ONNX file on test images, those of its training unless options say others.

    Its PyTorch network is opened for `examine` full alone. Returns the id of the evaluation's own run, which is linked
    to the version, and the scores.
    """
    release = registry.pull(spec)
    config = TrainConfig(**{**release.config, **options})
    splits = read_splits(config)
    check_classes(release, splits)
    read_ood_images(config, limit=1)  # what fails for want of a file fails before there is a run
    name = named(release)
    network = open_network(registry.pull(str(release.version), pytorch=True)) if config.analysis == "full" else None
    classifier = OnnxClassifier(release.onnx_path)
    tags = {"evaluates": f"models:/{registry.model_name}/{release.version}", "trained_by": release.run_id}
    run_name = f"evaluate-{registry.model_name}-{release.version}"
    with tracking.start_run(experiment=experiment, output_dir=OUTPUT_DIR, run_name=run_name, tags=tags) as run:
        logits = classifier.logits([*splits.test.images])
        evaluation = score(logits, splits, release.temperature, release.threshold)
        probabilities = softmax(logits, release.temperature)
        log_datasets(run, config, {"test": splits.test}, splits)
        log_evaluation(run, evaluation, splits.test, probabilities)
        if config.analysis == "none":
            return run.run_id, evaluation
        others = trained_on(release, splits)
        found = analyze(
            evaluation,
            splits.test,
            logits,
            config,
            predictor=classifier.logits,
            trained_on=others,
            network=network,
        )
        note = "" if others else " The images of its training are not here, so they were not searched for duplicates."
        log_report(
            run,
            found,
            evaluation,
            splits.test,
            probabilities,
            title=f"{name} on {data_name(config)}",
            subtitle=f"Answered {len(splits.test):,} images from its ONNX file.{note}",
            facts=facts_of(release) | {"Run": run.run_id},
        )
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
    """Ask two registered versions for the same test images and compare their answers, the first against the second.

    The images are those that both were tested on, unless options name others. Returns the id of the comparison's own
    run and the verdict. Raises DataError when the two were tested on different images.
    """
    ours, theirs = registry.pull(spec), registry.pull(other_spec)
    config = TrainConfig(**{**ours.config, **options})
    splits = read_splits(config)
    for release in (ours, theirs):
        check_classes(release, splits)
        if not options:
            check_same_images(release, splits)
    names = f"{named(ours)} against {named(theirs)}"
    tags = {"compares": f"models:/{registry.model_name}/{ours.version}", "against": str(theirs.version)}
    with tracking.start_run(experiment=experiment, output_dir=OUTPUT_DIR, run_name=names, tags=tags) as run:
        log_datasets(run, config, {"test": splits.test}, splits)
        evaluation, probabilities = answered(ours, splits)
        comparison = compare_evaluations(evaluation, answered(theirs, splits)[0], margin=margin, detectable=detectable)
        log_evaluation(run, evaluation, splits.test, probabilities)
        log_report(
            run,
            None,
            evaluation,
            splits.test,
            probabilities,
            title=names,
            subtitle=f"Both answered the same {len(splits.test):,} images from their ONNX files.",
            facts=facts_of(ours) | {"Against": f"{named(theirs)}, release {theirs.release_id}", "Run": run.run_id},
            comparison=comparison,
        )
    return run.run_id, comparison


def answered(release: Manifest, splits: Splits) -> tuple[Evaluation, Any]:
    """A version's scores and probabilities (N, K) on the test images."""
    logits = OnnxClassifier(release.onnx_path).logits([*splits.test.images])
    evaluation = score(logits, splits, release.temperature, release.threshold)
    return evaluation, softmax(logits, release.temperature)


def test_images(release: Manifest) -> ImageDataset | None:
    """The images that a version was tested on; None when they are not here, or not the same any more."""
    try:
        splits = read_splits(TrainConfig(**release.config))
    except DataError:
        return None
    return splits.test if splits.fingerprint == release.fingerprint else None


def trained_on(release: Manifest, splits: Splits) -> Mapping[str, ImageDataset]:
    """The images of a version's training and calibration; none when they are no longer where they were."""
    own = splits
    if splits.fingerprint != release.fingerprint:
        try:
            own = read_splits(TrainConfig(**release.config))
        except DataError:
            return {}
    known = own.fingerprint == release.fingerprint
    return {"train": own.train, "validation": own.validation} if known else {}


def check_classes(release: Manifest, splits: Splits) -> None:
    """Raises DataError when a version cannot answer with the classes of the images."""
    if splits.class_names != release.class_names:
        raise DataError(
            f"{named(release)} knows the classes {', '.join(release.class_names)}, the images "
            f"have {', '.join(splits.class_names)}: name images of the same classes with --data and --data-dir."
        )


def check_same_images(release: Manifest, splits: Splits) -> None:
    """Raises DataError when a version was tested on other images than these."""
    recorded, now = release.checks.get("test", {}).get("fingerprint"), splits.fingerprints["test"]
    if recorded is None:  # it was released with the fingerprint of all splits alone
        recorded, now = release.fingerprint, splits.fingerprint
    if recorded != now:
        raise DataError(
            f"{named(release)} was tested on other images (fingerprint {recorded[:12]}) than these ({now[:12]}), "
            "so its tests cannot be compared: name images for both with --data, --data-dir and --test-per-class."
        )


def named(release: Manifest) -> str:
    return f"{release.model_name} {release.version}"


def facts_of(release: Manifest) -> dict[str, str]:
    """What the report of a version says under its title."""
    return {
        "Version": named(release),
        "Release": release.release_id,
        "Trained by run": release.run_id,
        "Network": f"{release.config.get('arch', '')}, {release.image_size} pixels",
    }
