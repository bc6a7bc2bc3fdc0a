"""The whole story on one page: dataset -> model -> train -> evaluate -> build -> register -> promote."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcifar import journal, outage, tracking
from vitcifar.cache import cache_dir
from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits, read_splits
from vitcifar.errors import GateError, TrackingError
from vitcifar.evaluation.calibration import softmax
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import check_ood
from vitcifar.model.network import Classifier, weights_sha256
from vitcifar.networks import make_network, make_teacher
from vitcifar.presets import resolve, run_name
from vitcifar.progress import notify
from vitcifar.registry.aliases import resolve_names
from vitcifar.registry.benchmark import benchmark
from vitcifar.registry.card import model_card
from vitcifar.registry.derivation import Derived, derive, run_tags, run_title
from vitcifar.registry.gates import read_evaluation
from vitcifar.registry.policy import Gate
from vitcifar.registry.registration import find_derived, publish
from vitcifar.registry.registry import Registry
from vitcifar.release.build import git_state
from vitcifar.release.flavor import requirements
from vitcifar.report.log import (
    analyze_trained,
    calibrate,
    log_evaluation,
    log_inputs,
    note,
    result_lines,
)
from vitcifar.report.tables import log_projector
from vitcifar.training.checkpoint import BEST, LAST
from vitcifar.training.distributed import broadcast, check_hardware, process_group, spawn_workers
from vitcifar.training.feature_cache import Embedder, open_feature_cache
from vitcifar.training.head_solver import solve_head
from vitcifar.training.loop import TrainResult, fit
from vitcifar.training.resume import check_resumable, choose, obstacle, resumed_config
from vitcifar.training.stages import Log
from vitcifar.uris import check_writable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of a training run: its test evaluation and the registered version, or the version derived from it."""

    run_id: str
    evaluation: Evaluation
    fingerprint: str
    weights_sha256: str
    model_name: str
    version: int
    alias: str | None  # the alias that points to the version now
    rejected_because: str  # why the requested alias does not
    gates: tuple[Gate, ...]  # of the requested promotion
    folder: Path  # the files of the run: report, checkpoints
    event_files: Path  # the folder of TensorBoard's, beside those of other runs
    budget: str = ""  # what came of the search for a version within the latency budget, if there is one

    def tags(self, promote_to: str) -> dict[str, str]:
        """Tags of a run: its version, and what came of the promotion: "champion", or "refused: accuracy, latency"."""
        tags = {"version": f"{self.model_name}/{self.version}"}
        if promote_to != "none":
            refused = f"refused: {', '.join(gate.name for gate in self.gates if not gate.passed)}"
            tags["promotion"] = refused if self.rejected_because else promote_to
        return tags


def train(config: TrainConfig, *, hurry: bool = True) -> Trained:
    """Train, evaluate once on the test split, export, check and register; raises VitCifarError.

    A store that fails while the release is made is not waited for, with `hurry`: `sync` makes it then.
    """
    config = check(config)
    splits = read_splits(config)
    if config.resume != "none":
        check_resumable(config.resume, splits.fingerprint)
    network = make_network(config, splits.class_names)
    with start_run(config, "train", run_id=config.resume if config.resume != "none" else None) as run:
        result, evaluation = fit_and_test(run, network, splits, config)
        run.journal.expect_release()
        with outage.hurried() if hurry else contextlib.nullcontext():
            trained = outage.again(lambda: release(run, network, splits, config, evaluation, result))
        run.journal.expect_no_release()
        return trained


def check(config: TrainConfig) -> TrainConfig:
    """The config with its names resolved; raises VitCifarError, before a run exists, for what would stop it later."""
    check_ood(config)
    check_hardware(config)
    requirements()  # of the release
    check_writable(Path(config.output_dir), "name another with --output-dir")
    check_writable(cache_dir(), "set VITCIFAR_CACHE to another folder")
    experiment = tracking.project_experiment() or config.experiment  # that of the run which `mlflow run` made
    return dataclasses.replace(resolve_names(config), experiment=experiment)


def fit_and_test(
    run: tracking.Run, network: Classifier, splits: Splits, config: TrainConfig
) -> tuple[TrainResult, Evaluation]:
    """Everything in a run before its release: training, calibration on validation, the test split once."""
    result = fit_and_log(run, network, splits, config)
    return result, test(run, network, splits, config, result)


def test(
    run: tracking.Run, network: Classifier, splits: Splits, config: TrainConfig, result: TrainResult
) -> Evaluation:
    """Calibrate a trained network on validation, and log its evaluation on the test split, which is used here once."""
    notify(f"Evaluating {len(splits.validation):,} validation and {len(splits.test):,} test images.")
    embedder = Embedder(network, config, open_feature_cache(config))
    validation, _ = embedder.predict(splits.validation)
    logits, embeddings = embedder.predict(splits.test)
    evaluation = calibrate(validation, logits, splits, config.target_precision)
    network.temperature.fill_(evaluation.temperature)
    log_evaluation(run, evaluation, splits.test, softmax(logits, evaluation.temperature))
    log_projector(run, evaluation, splits.test, embeddings)
    run.note(note(config, splits, *result_lines(result, evaluation), options=result.options))
    name, step = f"epoch {result.best_epoch} of {run_name(config)}", result.best_step
    if result.method:
        name = f"weights of {run_name(config)}"
    steps = {"validation": step, "test": 0}
    run.log_checkpoint(name, run.folder / BEST, step, {"epoch": result.best_epoch}, steps)
    both = {"validation": validation, "test": logits}
    analyze_trained(run, embedder, splits, config, evaluation, both, result=result, git=git_state())
    return evaluation


def fit_and_log(
    run: tracking.Run, network: Classifier, splits: Splits, config: TrainConfig, *, log: Log | None = None
) -> TrainResult:
    """Log the inputs, then train: the network ends with its best weights on validation."""
    resumed = config.resume != "none"
    if not resumed:
        log_inputs(run, config, splits, network, git_state())
    with spawn_workers(config.num_processes), process_group():
        folder, data = Path(broadcast(str(run.folder))), (splits.train, splits.validation)
        teacher = make_teacher(config, splits.class_names)
        if teacher and not resumed:
            run.set_tags({"teacher": config.teacher, "teacher_weights_sha256": weights_sha256(teacher)})
        options: dict[str, Any] = {"log": log or run.log, "log_histograms": run.log_histograms}
        options |= {"folder": folder, "resume": folder / LAST if resumed else None}
        options["feature_cache"] = open_feature_cache(config)
        if config.head_solver == "lbfgs":
            return solve_head(network, *data, config, **options)
        return fit(network, *data, config, teacher=teacher, **options)


def train_worker(config: TrainConfig, folder: Path | None = None) -> None:
    """Train as one of several processes; rank 0 tracks, evaluates and releases, and names the run's folder."""
    splits = read_splits(config)
    network, log = make_network(config, splits.class_names), lambda step, metrics: None
    teacher, data = make_teacher(config, splits.class_names), (splits.train, splits.validation)
    with process_group():
        folder = folder or Path(broadcast(""))
        resume = folder / LAST if config.resume != "none" else None
        shared: dict[str, Any] = {"teacher": teacher, "feature_cache": open_feature_cache(config)}
        fit(network, *data, config, log=log, folder=folder, resume=resume, **shared)


def resume_worker(options: dict[str, Any]) -> None:
    """As `train_worker`, for a run that rank 0 resumes: it alone knows which one is the last."""
    with process_group():
        folder = Path(broadcast(""))
        train_worker(resumed_config(folder, options), folder)


def release(
    run: tracking.Run,
    network: Classifier,
    splits: Splits,
    config: TrainConfig,
    evaluation: Evaluation,
    result: TrainResult,
    *,
    checks: Mapping[str, Any] | None = None,
) -> Trained:
    """Build, register and benchmark a version, and promote it to the requested alias if it passes the gates.

    With a latency budget its fastest variant that is not worse is registered too, and is what is promoted. `checks` are
    recorded in the release beside those that it makes. What an earlier process of the run has registered is not
    registered again. Raises VitCifarError.
    """
    notify(f"Exporting to ONNX, and checking parity on {len(splits.test):,} test images.")
    run.settle()
    network.to("cpu")  # where releases are checked and serve
    given: dict[str, Any] = {"splits": splits, "evaluation": evaluation.to_dict(), "checks": checks}
    steps = {"validation": result.best_step, "test": 0}
    manifest = publish(run, network, config, steps, int8=config.int8 == "try", **given)
    version, sha256 = manifest.version, manifest.checks["weights_sha256"]
    assert version is not None
    run.set_tags({"weights_sha256": sha256, "version": f"{config.model_name}/{version}"})
    registry = Registry(config.model_name)
    if config.benchmark_runs:
        notify(f"Measuring the latency of {config.model_name} {version}.")
        benchmark(registry, version, network=network, num_runs=config.benchmark_runs)
    budget = ""
    if config.max_p95_ms:
        derived = search_variants(registry, version, network, splits, config)
        version, budget = derived.version or version, derived.message
        evaluation, sha256 = derived.evaluation or evaluation, derived.weights_sha256 or sha256
    gates, rejected_because = promote_requested(registry, version, config, run.run_id)
    alias = None if rejected_because or config.promote_to == "none" else config.promote_to
    outcome = f"Version {version} of {config.model_name}" + (f" ({alias})." if alias else f". {rejected_because}")
    run.note(note(config, splits, *result_lines(result, evaluation, outcome), options=result.options))
    run.writer.add_text("card", model_card(registry.show(version), manifest))
    trained = Trained(
        run_id=run.run_id,
        evaluation=evaluation,
        fingerprint=splits.fingerprint,
        weights_sha256=sha256,
        model_name=config.model_name,
        version=version,
        alias=alias,
        rejected_because=rejected_because,
        gates=gates,
        folder=run.folder,
        event_files=run.event_files,
        budget=budget,
    )
    run.set_tags(trained.tags(config.promote_to))
    return trained


def promote_requested(
    registry: Registry, version: int, config: TrainConfig, run_id: str
) -> tuple[tuple[Gate, ...], str]:
    """Point the requested alias at a version, if there is one; the gates, and why they rejected it or ""."""
    if config.promote_to == "none":
        return (), ""
    limits = [limit for limit in (registry.policy().max_p95_ms, config.max_p95_ms) if limit]
    limit: dict[str, Any] = {"max_p95_ms": min(limits)} if limits else {}
    try:
        return registry.promote(version, config.promote_to, reason=f"requested by run {run_id}", **limit).gates, ""
    except GateError as error:
        return error.gates, str(error)


def search_variants(
    registry: Registry, version: int, network: Classifier, splits: Splits, config: TrainConfig
) -> Derived:
    """The fastest variant of a version that was just trained, within the budget of its config: a run below its own."""
    if found := find_derived(registry, version):  # by an earlier process of the run
        return Derived(
            variants=(),
            message=f"Version {found.version} was derived from it.",
            version=found.version,
            evaluation=read_evaluation(found),
            weights_sha256=found.checks["weights_sha256"],
        )
    release = registry.pull(version)
    with start_run(config, "optimize", name=run_title(release), nested=True, tags=run_tags(release)) as run:
        return derive(run, network, release, config, splits, max_p95_ms=config.max_p95_ms)


def sync(run_id: str, output_dir: str) -> tuple[int, Trained | None]:
    """Deliver what the tracking store did not take of a run, and make the release of a training that ended without.

    Returns the number of entries delivered, and the release's result if there was one to make. Raises TrackingError
    when this machine has nothing of the run, or the store still does not take it.
    """
    folder = Path(output_dir) / run_id / journal.FOLDER
    if not folder.is_dir():
        raise TrackingError(
            f"Nothing of run {run_id} waits in {output_dir}: name its folder with --output-dir, or go on with "
            f"vitcifar train --resume {run_id}."
        )
    num_entries, needs_release = journal.deliver_left(folder, journal.LAST_SECONDS)
    return num_entries, train(resumed_config(folder.parent, {}), hurry=False) if needs_release else None


def start_run(
    config: TrainConfig, kind: str, *, name: str | None = None, tags: dict[str, str] | None = None, **options: Any
) -> contextlib.AbstractContextManager[tracking.Run]:
    """The run of a config, in both trackers; its tag `kind` tells runs that train from their children and others."""
    name = name or (config.run_name if config.run_name != "none" else run_name(config))
    tags, folder = {"kind": kind, **(tags or {})}, Path(config.output_dir)
    return tracking.start_run(experiment=config.experiment, output_dir=folder, run_name=name, tags=tags, **options)


def plan(preset: str, options: dict[str, Any], tracking_uri: str | None = None) -> TrainConfig:
    """Connect to the store, and return the config of a run: the preset and the given options, or those of the run to
    resume, for which a store must exist: it knows what has finished. Raises VitCifarError.
    """
    if options.get("resume", "none") == "none":
        config = resolve(preset, **options)
        tracking.connect(tracking_uri)
        return config
    tracking.connect(tracking_uri, new=False)
    folder = choose(Path(options.get("output_dir", "runs")), options["resume"], obstacle)
    return resumed_config(folder, options)
