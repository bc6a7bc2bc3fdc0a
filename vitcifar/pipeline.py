"""The whole story on one page: data -> model -> train -> evaluate -> export -> release."""

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcifar import __version__, tracking
from vitcifar.config import TrainConfig, resolve
from vitcifar.data.pictures import Pictures
from vitcifar.data.sources import open_source
from vitcifar.data.splits import Splits, make_splits
from vitcifar.errors import ConfigError, DataError, TrainingError
from vitcifar.evaluation.calibration import fit_temperature, softmax
from vitcifar.evaluation.figures import figures
from vitcifar.evaluation.scores import Evaluation, evaluate

if TYPE_CHECKING:
    from vitcifar.release.registry import Registry
    from vitcifar.training.loop import Log, Outcome
    from vitcifar.training.network import Classifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run ended with."""

    run_id: str
    evaluation: Evaluation
    fingerprint: str
    weights_sha256: str
    model_name: str
    version: int
    alias: str | None


def train(config: TrainConfig) -> Trained:
    """Train, evaluate once on the test pictures, export, prove and register; raises VitCifarError."""
    # What can fail for want of a file or a right name fails before there is a run.
    check_names(config)
    splits = read_splits(config)
    network = make_network(config, splits.class_names)
    resumed = config.resume if config.resume != "none" else None
    with start_run(config, run_id=resumed) as run:
        _, evaluation = learn_and_test(run, network, splits, config, resumed=resumed is not None)
        return release(run, network, splits, config, evaluation)


def check_names(config: TrainConfig) -> None:
    """Hold the names that a release will take against the registry's rules; raises RegistryError."""
    from vitcifar.release.registry import Registry, check_alias

    Registry(config.model_name)
    if config.promote_to != "none":
        check_alias(config.promote_to)


def learn_and_test(
    run: tracking.Run, network: "Classifier", splits: Splits, config: TrainConfig, *, resumed: bool = False
) -> tuple["Outcome", Evaluation]:
    """All of a run that comes before its release."""
    outcome = learn(run, network, splits, config, resumed=resumed)
    temperature = calibrate(network, splits, config)
    return outcome, test(run, network, splits, config, temperature)


def start_run(config: TrainConfig, **more: Any) -> contextlib.AbstractContextManager[tracking.Run]:
    """The run that a config asks for, in both trackers."""
    name = config.run_name if config.run_name != "none" else f"{config.arch}-{config.data}-{config.train_layers}"
    return tracking.start_run(experiment=config.experiment, output_dir=Path(config.output_dir), run_name=name, **more)


def learn(
    run: tracking.Run,
    network: "Classifier",
    splits: Splits,
    config: TrainConfig,
    *,
    resumed: bool = False,
    log: "Log | None" = None,
) -> "Outcome":
    """Record what goes in, then train; the network ends with the weights of its best epoch on validation.

    `log(step, metrics)` is called in place of the run's own.
    """
    from vitcifar.training.checkpoint import LAST
    from vitcifar.training.loop import fit

    if not resumed:
        record_inputs(run, config, splits, network)
    resume = run.folder / LAST if resumed else None
    return fit(network, splits.train, splits.validation, config, log=log or run.log, folder=run.folder, resume=resume)


def calibrate(network: "Classifier", splits: Splits, config: TrainConfig) -> float:
    """Fit the temperature on the validation pictures and put it into the network."""
    from vitcifar.training.predict import predict_logits

    logits = predict_logits(network, splits.validation.images, config.batch_size)
    temperature = fit_temperature(logits, splits.validation.labels)
    network.temperature.fill_(temperature)
    return temperature


def test(
    run: tracking.Run, network: "Classifier", splits: Splits, config: TrainConfig, temperature: float
) -> Evaluation:
    """Score the test pictures, once, and record it."""
    from vitcifar.training.predict import predict_logits

    logits = predict_logits(network, splits.test.images, config.batch_size)
    evaluation = score(logits, splits, temperature)
    record_evaluation(run, evaluation, splits.test, softmax(logits, temperature))
    return evaluation


def release(
    run: tracking.Run, network: "Classifier", splits: Splits, config: TrainConfig, evaluation: Evaluation
) -> Trained:
    """Export, prove, register as one version, and give it the alias that was asked for."""
    from vitcifar.release.publish import publish
    from vitcifar.release.registry import Registry
    from vitcifar.training.network import weights_sha256

    digest = weights_sha256(network)
    run.set_tags({"weights_sha256": digest})
    version = publish(network, splits=splits, evaluation=evaluation.to_dict(), config=config, run_id=run.run_id)
    run.set_tags({"version": f"{config.model_name}/{version}"})
    alias = None if config.promote_to == "none" else config.promote_to
    if alias:
        Registry(config.model_name).promote(str(version), alias, reason=f"asked for by run {run.run_id}")
    return Trained(
        run_id=run.run_id,
        evaluation=evaluation,
        fingerprint=splits.fingerprint,
        weights_sha256=digest,
        model_name=config.model_name,
        version=version,
        alias=alias,
    )


def evaluate_version(registry: "Registry", spec: str, *, experiment: str, **options: Any) -> tuple[str, Evaluation]:
    """Score a registered version's ONNX file on test pictures, those of its training unless options say others.

    Returns the id of the evaluation's own run, which is linked to the version, and the scores.
    """
    from vitcifar.inference.session import OnnxClassifier

    release = registry.pull(spec)
    config = TrainConfig(**{**release.config, **options})
    splits = read_splits(config)
    if splits.class_names != release.class_names:
        raise DataError(
            f"{registry.model_name} {release.version} knows the classes {', '.join(release.class_names)}, the pictures "
            f"have {', '.join(splits.class_names)}: name pictures of the same classes with --data and --data-dir."
        )
    classifier = OnnxClassifier(release.onnx_path)
    tags = {"evaluates": f"models:/{registry.model_name}/{release.version}", "trained_by": release.run_id}
    name = f"evaluate-{registry.model_name}-{release.version}"
    with tracking.start_run(experiment=experiment, output_dir=Path("runs"), run_name=name, tags=tags) as run:
        logits = classifier.logits(splits.test.images)
        evaluation = score(logits, splits, release.temperature)
        record_data(run, config, {"test": splits.test}, splits)
        record_evaluation(run, evaluation, splits.test, softmax(logits, release.temperature))
    return run.run_id, evaluation


def score(logits: np.ndarray, splits: Splits, temperature: float) -> Evaluation:
    """Scores of logits (N, K) on the test pictures."""
    fingerprint = splits.fingerprints["test"]
    return evaluate(logits, splits.test.labels, splits.class_names, temperature=temperature, fingerprint=fingerprint)


def read_splits(config: TrainConfig) -> Splits:
    """The pictures that a config names; raises DataError."""
    return make_splits(
        open_source(config.data, Path(config.data_dir)),
        train_per_class=config.train_per_class,
        validation_per_class=config.validation_per_class,
        test_per_class=config.test_per_class,
        seed=config.data_seed,
    )


def make_network(config: TrainConfig, class_names: tuple[str, ...]) -> "Classifier":
    """The network at its start: seeded, from the weights that a config names."""
    from vitcifar.release.registry import Registry
    from vitcifar.training.network import build_network

    def load_release(uri: str) -> dict[str, Any]:
        return Registry(config.model_name).state_dict(uri)

    return build_network(config, class_names, load_release=load_release)


def record_inputs(run: tracking.Run, config: TrainConfig, splits: Splits, network: "Classifier") -> None:
    """Config, data sets with their roles, code and model, before the first step."""
    from vitcifar.training.network import count_parameters

    run.log_params({**dataclasses.asdict(config), "fingerprint": splits.fingerprint})
    counts = {"trainable_parameters": count_parameters(network, trained=True), "parameters": count_parameters(network)}
    run.log_params(counts, prefix="model.")
    run.set_tags({"vitcifar_version": __version__, **git_state()})
    record_data(run, config, {role: pictures for role, pictures in splits.roles.items() if len(pictures)}, splits)
    (run.folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2))
    run.log_json("config.json", dataclasses.asdict(config))


def record_data(run: tracking.Run, config: TrainConfig, roles: Mapping[str, Pictures], splits: Splits) -> None:
    """Each role's pictures as an MLflow dataset input."""
    location = str(Path(config.data_dir).absolute())
    for role, pictures in roles.items():
        run.log_pictures(role, len(pictures), splits.fingerprints[role], source=config.data, location=location)


def record_evaluation(run: tracking.Run, evaluation: Evaluation, pictures: Pictures, probabilities: np.ndarray) -> None:
    """Numbers, JSON and figures of the test pictures, in both trackers."""
    run.log(0, {f"test/{name}": value for name, value in evaluation.scalars().items()})
    run.log_json("evaluation/test.json", evaluation.to_dict())
    for name, figure in figures(evaluation, pictures, probabilities).items():
        run.log_figure(f"test/{name}", figure)


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
