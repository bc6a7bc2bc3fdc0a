"""Registered versions: evaluated, compared and trained again, each as a run of its own."""

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitcifar import tracking
from vitcifar.config import TrainConfig, groups
from vitcifar.data.dataset import ImageDataset
from vitcifar.data.splits import Splits, read_splits
from vitcifar.errors import ConfigError, DataError, ReleaseError, TrackingError
from vitcifar.evaluation.analysis import analyze
from vitcifar.evaluation.calibration import softmax
from vitcifar.evaluation.compare import Comparison, compare_evaluations
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import check_ood
from vitcifar.experiments.logs import first_difference
from vitcifar.inference.session import OnnxClassifier
from vitcifar.networks import make_network
from vitcifar.progress import notify
from vitcifar.registry.diff import Difference, compare_sections, flatten, metrics
from vitcifar.registry.registry import Registry, Version
from vitcifar.release.build import environment, git_state
from vitcifar.release.cache import open_network
from vitcifar.release.manifest import Manifest
from vitcifar.release.served import open_served
from vitcifar.report.log import data_name, log_datasets, log_evaluation, log_report, score

OUTPUT_DIR = Path("runs")
AGAIN = {"resume": "none", "promote_to": "none"}  # of a version that is trained again
# Entries of the environment that decide the bits of the weights.
DECIDING = ("numerics.", *(f"packages.{name}" for name in ("numpy", "pillow", "torch", "torchvision")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction:
    """The result of training a version again; the differences explain weights that are not the same."""

    version: int
    same_weights: bool
    differences: tuple[Difference, ...]
    first_step: Difference | None  # the first training metric that differs
    why: str  # what is likely to have caused other weights; "" for the same weights


def evaluate_version(registry: Registry, spec: str, *, experiment: str, **options: Any) -> tuple[str, Evaluation]:
    """Evaluate the ONNX model of a version on its own test images, or on those that `options` select.

    Only the analysis `full` opens the PyTorch network. Returns the id of the evaluation's run, which is linked to the
    version, and the metrics.
    """
    release = registry.pull(spec)
    config, splits = read_images(release, **options)
    check_ood(config)
    embedder = None
    if config.analysis == "full":
        from vitcifar.training.feature_cache import Embedder, open_feature_cache

        network = open_network(registry.pull(str(release.version), pytorch=True))
        embedder = Embedder(network, config, open_feature_cache(config))
    classifier = open_served(release)
    name = f"evaluate {registry.model_name} {release.version}"
    tags = {
        "kind": "evaluate",
        "evaluates": f"models:/{registry.model_name}/{release.version}",
        "trained_by": release.run_id,
    }
    where = ""
    if not tested_on(release, splits):
        name += " on other images"
        where = ", other than those of its release,"
        tags["other_images"] = "true"
    with tracking.start_run(experiment=experiment, output_dir=OUTPUT_DIR, run_name=name, tags=tags) as run:
        evaluation, logits = evaluate_onnx(classifier, release, splits)
        evaluated = (evaluation, splits.test, softmax(logits, release.temperature))
        log_datasets(run, config, {"test": splits.test}, splits)
        log_evaluation(run, *evaluated)
        if model_id := registry.model_id(registry.show(str(release.version))):
            run.link_model(model_id, {"test": 0})
        run.note(f"{release.name} on {data_name(config)}: **test accuracy {evaluation.accuracy_text()}**.")
        if config.analysis == "none":
            return run.run_id, evaluation
        own = trained_on(release, splits)
        analysis = analyze(
            evaluation, splits.test, logits, config, predictor=classifier.logits, trained_on=own, embedder=embedder
        )
        title = f"{release.name} on {data_name(config)}"
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
    versions = registry.list()
    found = [registry.find(one, versions) for one in (spec, other_spec)]
    ours, theirs = (registry.pull_version(version) for version in found)
    config, splits = read_images(ours, theirs, **options)
    name, other_name = map(with_aliases, found)
    title, where = f"{registry.model_name} {name} against {other_name}", ""
    tags = {
        "kind": "compare",
        "compares": f"models:/{registry.model_name}/{ours.version}",
        "against": str(theirs.version),
    }
    if not all(tested_on(release, splits) for release in (ours, theirs)):
        title, where = f"{title}, on other images", ", other than those of their releases,"
        tags["other_images"] = "true"
    with tracking.start_run(experiment=experiment, output_dir=OUTPUT_DIR, run_name=title, tags=tags) as run:
        log_datasets(run, config, {"test": splits.test}, splits)
        evaluation, logits = evaluate_onnx(open_served(ours), ours, splits)
        other, _ = evaluate_onnx(open_served(theirs), theirs, splits)
        comparison = compare_evaluations(
            evaluation, other, margin=margin, detectable=detectable, names=(name, other_name)
        )
        evaluated = (evaluation, splits.test, softmax(logits, ours.temperature))
        log_evaluation(run, *evaluated)
        run.note(f"{' against '.join(comparison.names)}: {comparison.summary()}.")
        subtitle = f"Both evaluated on the same {len(splits.test):,} images{where} with their ONNX models."
        facts = report_facts(ours, run) | {"Against": f"{other_name}, release {theirs.release_id}"}
        log_report(run, None, *evaluated, title=title, subtitle=subtitle, facts=facts, comparison=comparison)
    return run.run_id, comparison


def with_aliases(version: Version) -> str:
    """What figures and reports call a version: version 5 (champion)."""
    return f"version {version.number}" + (f" ({', '.join(version.aliases)})" if version.aliases else "")


def reproduce(registry: Registry, spec: str | int) -> Reproduction:
    """Train a version that is no soup again from its recorded config, as a run that releases nothing, and compare.

    The config neither resumes nor promotes; the threads and switches of torch are as recorded. Raises ReleaseError
    before training when the images differ, or the config is one of another vitcifar; warns when the commit differs.
    """
    from vitcifar import pipeline
    from vitcifar.experiments.soup import require_single_run
    from vitcifar.model.network import weights_sha256
    from vitcifar.training.numerics import recorded_switches

    release = registry.pull(spec)
    assert release.version is not None
    commit, git, config = release.git.get("commit"), git_state(), recorded_config(release, **AGAIN)
    require_single_run(release, config)
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
    with recorded_switches(release.environment.get("numerics", {})) as changed:
        if changed:
            notify(f"As recorded: {', '.join(f'{name} {value}' for name, value in changed.items())}.")
        network = make_network(config, splits.class_names)
        with pipeline.start_run(config, "reproduce", name=f"reproduce {release.name}") as run:
            _, evaluation = pipeline.fit_and_test(run, network, splits, config)
        now = environment()
    recorded, weights, scores = release.checks.get("weights_sha256"), weights_sha256(network), evaluation.to_dict()
    causes = (
        *compare_sections("code", release.git, git),
        *compare_sections("environment", *_comparable(release.environment, now)),
    )
    differences = (
        *compare_sections("weights", {"sha256": recorded}, {"sha256": weights}),
        *compare_sections("metrics", *_comparable(metrics(release.checks.get("test") or {}), metrics(scores))),
        *causes,
    )
    same, first_step = recorded == weights, None
    if not same:
        with contextlib.suppress(TrackingError):  # the run of the version was deleted
            first_step = first_difference(release.run_id, run.run_id)
    return Reproduction(
        version=release.version,
        same_weights=same,
        differences=differences,
        first_step=first_step,
        why="" if same else _likely_cause(release, causes),
    )


def _comparable(*records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Records as flat names, without what an old release does not have."""
    common = set.intersection(*map(set, records))
    return [flatten({name: value for name, value in one.items() if name in common}) for one in records]


def _likely_cause(release: Manifest, causes: Sequence[Difference]) -> str:
    """The differences in code, threads, machine and computing packages, in one sentence."""
    found = [row for row in causes if row.section == "code" or row.name.startswith(DECIDING)]
    if found:
        names = [row.name.removeprefix("numerics.").removeprefix("packages.") for row in found]
        values = [["none" if value is None else value for value in (row.before, row.after)] for row in found]
        rows = [f"{name} {before}, now {after}" for name, (before, after) in zip(names, values, strict=True)]
        return f"The likely cause: {'; '.join(rows)}."
    if "numerics" not in release.environment:
        return "Its number of threads is not recorded: try another, with OMP_NUM_THREADS."
    return "Nothing that is recorded of the code, the threads, the machine and the packages differs."


def recorded_config(release: Manifest, **options: Any) -> TrainConfig:
    """The config of a version with other `options`. Raises ReleaseError when this vitcifar has other settings."""
    try:
        config = TrainConfig(**release.config)
    except (TypeError, ConfigError) as error:
        raise ReleaseError(
            f"The config of version {release.version} was recorded by another vitcifar ({error}): check out commit "
            f"{release.git.get('commit') or 'not recorded'} and type the command there."
        ) from error
    return dataclasses.replace(config, **options)


def read_images(*releases: Manifest, **options: Any) -> tuple[TrainConfig, Splits]:
    """The config of the first release with other `options`, and its images.

    Raises ReleaseError for a config of another vitcifar, DataError when their classes are not those of every release,
    or when a release was tested on other images than these and no options of the data select them; with such options,
    warns of it.
    """
    config = recorded_config(releases[0], **options)
    selected = any(groups()[name] == "Data" for name in options)
    splits = read_splits(config, test_only=True) if selected else read_splits(config)
    for release in releases:
        if splits.class_names != release.class_names:
            raise DataError(
                f"{release.name} has the classes {', '.join(release.class_names)}, the images "
                f"have {', '.join(splits.class_names)}: name images of the same classes with --data and --data-dir."
            )
        if not tested_on(release, splits):
            other = f"{release.name} was tested on other images than these"
            if not selected:
                raise DataError(
                    f"{other} (fingerprint {splits.fingerprints['test'][:12]}): restore them, or name images on "
                    "purpose with --data, --data-dir and --test-per-class."
                )
            warnings.warn(f"{other}.", stacklevel=3)
    return config, splits


def tested_on(release: Manifest, splits: Splits) -> bool:
    """Whether a version was tested on this test split; an old release has only the fingerprint of all splits."""
    test = splits.fingerprints["test"]
    if recorded := (release.checks.get("test") or {}).get("fingerprint"):
        return bool(recorded == test)
    own = splits if splits.fingerprint == release.fingerprint else recorded_splits(release)
    return own is not None and own.fingerprint == release.fingerprint and own.fingerprints["test"] == test


def evaluate_onnx(classifier: OnnxClassifier, release: Manifest, splits: Splits) -> tuple[Evaluation, np.ndarray]:
    """The metrics of a version's ONNX model on the test split, and its logits (N, K)."""
    logits = classifier.logits(splits.test.images)
    return score(logits, splits, release.temperature, release.threshold), logits


def recorded_splits(release: Manifest) -> Splits | None:
    """The splits that the config of a version selects now, whose images may have changed; None without them."""
    try:
        return read_splits(recorded_config(release))
    except (DataError, ReleaseError):
        return None


def trained_on(release: Manifest, splits: Splits) -> Mapping[str, ImageDataset]:
    """The training and validation images of a version; empty when they are missing or have changed."""
    for own in (splits, recorded_splits(release) if splits.fingerprint != release.fingerprint else None):
        if own and own.fingerprint == release.fingerprint:
            return {"train": own.train, "validation": own.validation}
    return {}


def report_facts(release: Manifest, run: tracking.Run) -> dict[str, str]:
    """The facts under the title of a version's report."""
    return {
        "Version": release.name,
        "Release": release.release_id,
        "Trained by run": release.run_id,
        "Network": f"{release.config.get('arch', '')}, {release.image_size} pixels",
        "Run": run.run_id,
    }
