"""Registered versions examined again, and two of them compared, each as a run of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcifar import tracking
from vitcifar.config import TrainConfig
from vitcifar.data.pictures import Pictures
from vitcifar.data.splits import Splits, read_splits
from vitcifar.errors import DataError
from vitcifar.evaluation.calibration import softmax
from vitcifar.evaluation.compare import Comparison, compare
from vitcifar.evaluation.scores import Evaluation
from vitcifar.examine.checks import examine
from vitcifar.examine.outsiders import read_outliers
from vitcifar.examine.record import data_name, record_data, record_evaluation, record_report, score
from vitcifar.inference.session import OnnxClassifier
from vitcifar.release.bundle import Release
from vitcifar.release.registry import Registry
from vitcifar.release.weights import open_network

if TYPE_CHECKING:
    pass

OUTPUT_DIR = Path("runs")


def evaluate_version(registry: Registry, spec: str, *, experiment: str, **options: Any) -> tuple[str, Evaluation]:
    """Score a registered version's ONNX file on test pictures, those of its training unless options say others.

    Its PyTorch network is opened for `examine` full alone. Returns the id of the evaluation's own run, which is linked
    to the version, and the scores.
    """
    release = registry.pull(spec)
    config = TrainConfig(**{**release.config, **options})
    splits = read_splits(config)
    check_classes(release, splits)
    read_outliers(config, limit=1)  # what fails for want of a file fails before there is a run
    name = named(release)
    network = open_network(registry.pull(str(release.version), pytorch=True)) if config.examine == "full" else None
    classifier = OnnxClassifier(release.onnx_path)
    tags = {"evaluates": f"models:/{registry.model_name}/{release.version}", "trained_by": release.run_id}
    run_name = f"evaluate-{registry.model_name}-{release.version}"
    with tracking.start_run(experiment=experiment, output_dir=OUTPUT_DIR, run_name=run_name, tags=tags) as run:
        logits = classifier.logits([*splits.test.images])
        evaluation = score(logits, splits, release.temperature, release.threshold)
        probabilities = softmax(logits, release.temperature)
        record_data(run, config, {"test": splits.test}, splits)
        record_evaluation(run, evaluation, splits.test, probabilities)
        if config.examine == "none":
            return run.run_id, evaluation
        others = trained_on(release, splits)
        found = examine(
            evaluation,
            splits.test,
            logits,
            config,
            predictor=classifier.logits,
            trained_on=others,
            network=network,
        )
        note = "" if others else " The pictures of its training are not here, so they were not searched for duplicates."
        record_report(
            run,
            found,
            evaluation,
            splits.test,
            probabilities,
            title=f"{name} on {data_name(config)}",
            subtitle=f"Answered {len(splits.test):,} pictures from its ONNX file.{note}",
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
    """Ask two registered versions for the same test pictures and compare their answers, the first against the second.

    The pictures are those that both were tested on, unless options name others. Returns the id of the comparison's own
    run and the verdict. Raises DataError when the two were tested on different pictures.
    """
    ours, theirs = registry.pull(spec), registry.pull(other_spec)
    config = TrainConfig(**{**ours.config, **options})
    splits = read_splits(config)
    for release in (ours, theirs):
        check_classes(release, splits)
        if not options:
            check_same_pictures(release, splits)
    names = f"{named(ours)} against {named(theirs)}"
    tags = {"compares": f"models:/{registry.model_name}/{ours.version}", "against": str(theirs.version)}
    with tracking.start_run(experiment=experiment, output_dir=OUTPUT_DIR, run_name=names, tags=tags) as run:
        record_data(run, config, {"test": splits.test}, splits)
        evaluation, probabilities = answered(ours, splits)
        comparison = compare(evaluation, answered(theirs, splits)[0], margin=margin, detectable=detectable)
        record_evaluation(run, evaluation, splits.test, probabilities)
        record_report(
            run,
            None,
            evaluation,
            splits.test,
            probabilities,
            title=names,
            subtitle=f"Both answered the same {len(splits.test):,} pictures from their ONNX files.",
            facts=facts_of(ours) | {"Against": f"{named(theirs)}, release {theirs.release_id}", "Run": run.run_id},
            comparison=comparison,
        )
    return run.run_id, comparison


def answered(release: Release, splits: Splits) -> tuple[Evaluation, Any]:
    """A version's scores and probabilities (N, K) on the test pictures."""
    logits = OnnxClassifier(release.onnx_path).logits([*splits.test.images])
    evaluation = score(logits, splits, release.temperature, release.threshold)
    return evaluation, softmax(logits, release.temperature)


def test_pictures(release: Release) -> Pictures | None:
    """The pictures that a version was tested on; None when they are not here, or not the same any more."""
    try:
        splits = read_splits(TrainConfig(**release.config))
    except DataError:
        return None
    return splits.test if splits.fingerprint == release.fingerprint else None


def trained_on(release: Release, splits: Splits) -> Mapping[str, Pictures]:
    """The pictures of a version's training and calibration; none when they are no longer where they were."""
    own = splits
    if splits.fingerprint != release.fingerprint:
        try:
            own = read_splits(TrainConfig(**release.config))
        except DataError:
            return {}
    known = own.fingerprint == release.fingerprint
    return {"train": own.train, "validation": own.validation} if known else {}


def check_classes(release: Release, splits: Splits) -> None:
    """Raises DataError when a version cannot answer with the classes of the pictures."""
    if splits.class_names != release.class_names:
        raise DataError(
            f"{named(release)} knows the classes {', '.join(release.class_names)}, the pictures "
            f"have {', '.join(splits.class_names)}: name pictures of the same classes with --data and --data-dir."
        )


def check_same_pictures(release: Release, splits: Splits) -> None:
    """Raises DataError when a version was tested on other pictures than these."""
    recorded, now = release.proofs.get("test", {}).get("fingerprint"), splits.fingerprints["test"]
    if recorded is None:  # it was released with the fingerprint of all splits alone
        recorded, now = release.fingerprint, splits.fingerprint
    if recorded != now:
        raise DataError(
            f"{named(release)} was tested on other pictures (fingerprint {recorded[:12]}) than these ({now[:12]}), "
            "so its tests cannot be compared: name pictures for both with --data, --data-dir and --test-per-class."
        )


def named(release: Release) -> str:
    return f"{release.model_name} {release.version}"


def facts_of(release: Release) -> dict[str, str]:
    """What the report of a version says under its title."""
    return {
        "Version": named(release),
        "Release": release.release_id,
        "Trained by run": release.run_id,
        "Network": f"{release.config.get('arch', '')}, {release.image_size} pixels",
    }
