"""The whole story on one page: data -> model -> train -> evaluate -> export -> release."""

import contextlib
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcifar import __version__, tracking
from vitcifar.config import TrainConfig, resolve
from vitcifar.data.splits import Splits, read_splits
from vitcifar.errors import ConfigError, TrainingError
from vitcifar.evaluation.calibration import choose_threshold, fit_temperature, softmax
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import read_ood_images
from vitcifar.report.log import analyze_trained, log_datasets, log_evaluation, score

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier
    from vitcifar.training.loop import Log, TrainResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run ended with."""

    run_id: str
    evaluation: Evaluation
    fingerprint: str
    weights_sha256: str
    model_name: str
    version: int
    alias: str | None  # what it holds now
    rejected_because: str  # why it does not hold the alias that was asked for


def train(config: TrainConfig) -> Trained:
    """Train, evaluate once on the test images, export, prove and register; raises VitCifarError."""
    # What can fail for want of a file or a right name fails before there is a run.
    read_ood_images(config, limit=1)
    config = resolve_names(config)
    splits = read_splits(config)
    network = make_network(config, splits.class_names)
    resumed = config.resume if config.resume != "none" else None
    with start_run(config, run_id=resumed) as run:
        _, evaluation = learn_and_test(run, network, splits, config, resumed=resumed is not None)
        return release(run, network, splits, config, evaluation)


def resolve_names(config: TrainConfig) -> TrainConfig:
    """Hold the names that a release will take against the registry's rules; weights named by an alias get the number
    that it means now, so that the recorded config always means the same ones. Raises RegistryError."""
    from vitcifar.registry.registry import Registry, check_alias, parse_uri

    Registry(config.model_name)
    if config.promote_to != "none":
        check_alias(config.promote_to)
    if not config.weights.startswith("models:/"):
        return config
    name, spec = parse_uri(config.weights)
    return dataclasses.replace(config, weights=f"models:/{name}/{Registry(name).resolve(spec)}")


def learn_and_test(
    run: tracking.Run, network: "Classifier", splits: Splits, config: TrainConfig, *, resumed: bool = False
) -> tuple["TrainResult", Evaluation]:
    """All of a run that comes before its release."""
    from vitcifar.training.loop import notify_on_stderr

    outcome = learn(run, network, splits, config, resumed=resumed)
    notify_on_stderr(f"Scoring {len(splits.validation):,} validation and {len(splits.test):,} test images.")
    temperature, threshold = calibrate(network, splits, config)
    return outcome, test(run, network, splits, config, temperature, threshold)


def start_run(
    config: TrainConfig, *, run_name: str | None = None, **more: Any
) -> contextlib.AbstractContextManager[tracking.Run]:
    """The run that a config asks for, in both trackers."""
    made_up = f"{config.arch}-{config.data}-{config.train_layers}"
    name = run_name or (config.run_name if config.run_name != "none" else made_up)
    return tracking.start_run(experiment=config.experiment, output_dir=Path(config.output_dir), run_name=name, **more)


def learn(
    run: tracking.Run,
    network: "Classifier",
    splits: Splits,
    config: TrainConfig,
    *,
    resumed: bool = False,
    log: "Log | None" = None,
) -> "TrainResult":
    """Record what goes in, then train; the network ends with the weights of its best epoch on validation.

    `log(step, metrics)` is called in place of the run's own.
    """
    from vitcifar.training.checkpoint import LAST
    from vitcifar.training.distributed import broadcast, process_group, spawn_workers
    from vitcifar.training.loop import fit

    if not resumed:
        record_inputs(run, config, splits, network)
    with spawn_workers(config.num_processes), process_group():
        folder = Path(broadcast(str(run.folder)))
        resume = folder / LAST if resumed else None
        return fit(network, splits.train, splits.validation, config, log=log or run.log, folder=folder, resume=resume)


def follow(config: TrainConfig) -> None:
    """Help the first of several processes with its training; it alone tracks, evaluates and releases."""
    from vitcifar.training.checkpoint import LAST
    from vitcifar.training.distributed import broadcast, process_group
    from vitcifar.training.loop import fit

    splits = read_splits(config)
    network = make_network(config, splits.class_names)
    with process_group():
        folder = Path(broadcast(""))
        resume = folder / LAST if config.resume != "none" else None
        fit(network, splits.train, splits.validation, config, log=lambda *_: None, folder=folder, resume=resume)


def calibrate(network: "Classifier", splits: Splits, config: TrainConfig) -> tuple[float, float]:
    """Fit temperature and threshold on the validation images; the temperature goes into the network."""
    from vitcifar.model.predict import predict_logits

    logits = predict_logits(network, splits.validation.images, config.batch_size)
    labels = splits.validation.labels
    temperature = fit_temperature(logits, labels)
    network.temperature.fill_(temperature)
    confidences = softmax(logits, temperature).max(axis=1)
    return temperature, choose_threshold(confidences, logits.argmax(axis=1) == labels, config.target_precision)


def test(
    run: tracking.Run, network: "Classifier", splits: Splits, config: TrainConfig, temperature: float, threshold: float
) -> Evaluation:
    """Score the test images, once, look closer, and record it."""
    from vitcifar.model.predict import predict_logits

    logits = predict_logits(network, splits.test.images, config.batch_size)
    evaluation = score(logits, splits, temperature, threshold)
    log_evaluation(run, evaluation, splits.test, softmax(logits, temperature))
    analyze_trained(run, network, splits, config, evaluation, logits)
    return evaluation


def release(
    run: tracking.Run, network: "Classifier", splits: Splits, config: TrainConfig, evaluation: Evaluation
) -> Trained:
    """Export, prove, register as one version, and give it the alias that was asked for if the gates let it pass."""
    from vitcifar.errors import GateError
    from vitcifar.model.network import weights_sha256
    from vitcifar.registry.benchmark import benchmark
    from vitcifar.registry.gates import promote
    from vitcifar.registry.registry import Registry, publish
    from vitcifar.training.loop import notify_on_stderr

    int8 = config.int8 == "try"
    forms = "float and int8" if int8 else "float"
    notify_on_stderr(f"Exporting to ONNX in {forms}, and proving it on {len(splits.test):,} test images.")
    network.to("cpu")  # where releases are proven and serve
    digest = weights_sha256(network)
    run.set_tags({"weights_sha256": digest})
    version = publish(
        network,
        splits=splits,
        evaluation=evaluation.to_dict(),
        config=config,
        run_id=run.run_id,
        int8=int8,
    )
    run.set_tags({"version": f"{config.model_name}/{version}"})
    registry = Registry(config.model_name)
    if config.benchmark_runs:
        notify_on_stderr(f"Timing {config.benchmark_runs} answers of every form of {config.model_name} {version}.")
        benchmark(registry, version, num_runs=config.benchmark_runs)
    alias, rejected_because = None, ""
    if config.promote_to != "none":
        try:
            promote(registry, version, config.promote_to, reason=f"asked for by run {run.run_id}")
            alias = config.promote_to
        except GateError as error:
            rejected_because = str(error)
    return Trained(
        run_id=run.run_id,
        evaluation=evaluation,
        fingerprint=splits.fingerprint,
        weights_sha256=digest,
        model_name=config.model_name,
        version=version,
        alias=alias,
        rejected_because=rejected_because,
    )


def make_network(config: TrainConfig, class_names: tuple[str, ...]) -> "Classifier":
    """The network at its start: seeded, from the weights that a config names."""
    from vitcifar.model.network import build_network
    from vitcifar.registry.registry import Registry
    from vitcifar.training.loop import notify_on_stderr

    def load_release(uri: str) -> dict[str, Any]:
        return Registry(config.model_name).state_dict(uri)

    return build_network(config, class_names, load_release=load_release, notify=notify_on_stderr)


def record_inputs(run: tracking.Run, config: TrainConfig, splits: Splits, network: "Classifier") -> None:
    """Config, data sets with their roles, code and model, before the first step."""
    from vitcifar.model.network import count_parameters
    from vitcifar.training.augmentation import augmentation_sheet

    run.log_params({**dataclasses.asdict(config), "fingerprint": splits.fingerprint})
    counts = {"trainable_parameters": count_parameters(network, trained=True), "parameters": count_parameters(network)}
    run.log_params(counts, prefix="model.")
    run.set_tags({"vitcifar_version": __version__, **git_state()})
    log_datasets(run, config, {split: dataset for split, dataset in splits.datasets.items() if len(dataset)}, splits)
    if config.augmentation != "none":
        run.log_image("augmentation", augmentation_sheet(splits.train, config.augmentation, seed=config.seed))
    (run.folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2))
    run.log_json("config.json", dataclasses.asdict(config))


def git_state() -> dict[str, str]:
    """Commit of this checkout and whether it was changed; nothing when the code is not in a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def plan(preset: str, options: dict[str, Any]) -> TrainConfig:
    """The config of a run from what was typed; a resumed run goes on with its own. Raises ConfigError."""
    if options.get("resume", "none") == "none":
        return resolve(preset, **options)
    folder = resumed_folder(Path(options.get("output_dir", "runs")), options["resume"])
    recorded = json.loads((folder / "config.json").read_text())
    for name, value in options.items():
        if name not in ("resume", "output_dir") and value != recorded[name]:
            raise ConfigError(
                f"Run {folder.name} was started with {name} {recorded[name]}, now it is {value}: "
                f"leave {name} out to go on with the run, or leave resume out to start another."
            )
    return TrainConfig(**{**recorded, "resume": folder.name, "output_dir": str(folder.parent)})


def resumed_folder(output_dir: Path, resume: str) -> Path:
    """The folder of the run to go on with: the newest checkpoint for `last`."""
    checkpoints = sorted(output_dir.glob("*/last.pt"), key=lambda path: path.stat().st_mtime)
    names = [path.parent.name for path in checkpoints]
    if not names:
        raise TrainingError(f"There is no checkpoint under {output_dir}: start a run without --resume.")
    if resume == "last":
        return checkpoints[-1].parent
    if resume not in names:
        raise TrainingError(f"There is no checkpoint of run {resume!r}; there are: {', '.join(names[-5:])}.")
    return output_dir / resume
