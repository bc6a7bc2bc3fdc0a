"""Commands that train and evaluate."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vitcifar.cli import format, options
from vitcifar.config import TrainConfig, groups
from vitcifar.errors import ConfigError
from vitcifar.presets import resolve

if TYPE_CHECKING:
    from vitcifar.pipeline import Trained
    from vitcifar.registry.registry import Registry

NOT_PROMOTED = 3  # exit code of `train`, which MLflow would show as a run that FAILED, like one that crashed
DATA_SETTINGS = (*(name for name, group in groups().items() if group == "Data" and name != "seed"), "cache_memory")
ANALYSIS_SETTINGS = ("analysis", "corruption_images", "ood")
NOT_SWEPT = {"Evaluation", "Release", "resume", "run_name"}  # a sweep trains and selects on validation
SWEEP_SETTINGS = tuple(name for name, group in groups().items() if not {name, group} & NOT_SWEPT)


@options.command
@options.settings()
@options.option(
    "--seeds", 1, "Number of seeds, starting at --seed, as nested runs; the best on validation is released.", minimum=1
)
@options.option(
    "--soup",
    "none",
    "Model soup of the seeds, released if it is better than the best one on validation: none, greedy or uniform.",
    choices=("none", "greedy", "uniform"),
)
@options.yes_or_no("--verbose", "Print also the calibration, the gates and the sha256 of the weights.")
@options.tracking_uri_option
def train(preset: str, seeds: int, soup: str, verbose: bool, tracking_uri: str, **values: Any) -> None:
    """Train, evaluate, export to ONNX and register a version.

    The exit code is 3 when the version does not pass the gates of --promote-to; within `mlflow run`, which would take
    that for a failed run, it is 0, and the run's tag `promotion` says so.

    \b
    vitcifar train --preset digits
    vitcifar train --train-layers all --learning-rate 1e-5 --epochs 5
    vitcifar train --preset digits --seeds 5
    """
    with options.without_gc():
        from vitcifar import pipeline
        from vitcifar.training.distributed import is_worker

    source = click.get_current_context().get_parameter_source("experiment")
    by_project = "MLFLOW_RUN_ID" in os.environ
    if values["resume"] is not None and source is ParameterSource.ENVIRONMENT:
        values["experiment"] = None  # a run that is resumed keeps its experiment
    given = options.given(values)
    if seeds == 1 and soup != "none":
        raise ConfigError("soup averages the weights of several seeds, but seeds is 1: type --seeds 5.")
    if seeds == 1 and is_worker():
        resumes = given.get("resume", "none") != "none"
        return pipeline.resume_worker(given) if resumes else pipeline.train_worker(resolve(preset, **given))
    config = pipeline.plan(preset, given, tracking_uri)
    trained = pipeline.train(config) if seeds == 1 else train_and_print_seeds(config, seeds, soup)
    print_outcome(trained, config.promote_to, verbose=verbose)
    if trained.rejected_because and not by_project:
        raise click.exceptions.Exit(NOT_PROMOTED)


def print_outcome(trained: "Trained", promote_to: str, *, verbose: bool) -> None:
    """Print what came out of a training, and the next command."""
    from vitcifar.registry.registry import Registry

    registry = Registry(trained.model_name)
    format.print_trained(trained, verbose=verbose)
    step = f"app --version {trained.alias or trained.version}"
    if trained.rejected_because:
        format.print_field("not promoted", trained.rejected_because)
        if promote_to in registry.aliases():
            step = f"compare {trained.version} {promote_to}"
    format.print_field("next", f"vitcifar {step}{registry.model_option}", err=True)


def train_and_print_seeds(config: TrainConfig, num_seeds: int, soup: str) -> "Trained":
    from vitcifar.experiments.seeds import train_seeds

    result = train_seeds(config, num_seeds, soup)
    for run in result.runs:
        accuracies = [f"{split} {run.metrics[f'{split}/accuracy']:.4f}" for split in ("validation", "test")]
        format.print_field(f"seed {run.seed}", f"{'  '.join(accuracies)}  run {run.run_id}")
    mean = result.intervals["test/accuracy"]
    interval = f"95% interval over the seeds {mean.low:.4f} to {mean.high:.4f}, Student's t"
    format.print_field("mean", f"{mean.mean:.4f} ({interval})")
    format.print_field("parent run", result.run_id)
    if result.soup:
        format.print_field("soup", result.soup.summary())
    kept = result.soup is not None and result.soup.kept
    format.print_field("released", "the soup" if kept else f"seed {result.best.seed}, the best on validation")
    return result.released


@options.command
@options.settings(*SWEEP_SETTINGS)
@click.option(
    "--search",
    multiple=True,
    default=["usual"],
    help="Search space of one setting: NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=VALUE,VALUE. Repeat the option, or "
    "separate by semicolons (usual = learning_rate, optimizer, weight_decay, label_smoothing).",
)
@options.option("--trials", 20, "Total finished trials, including earlier and parallel runs.", minimum=1)
@options.option("--name", "sweep", "Name of the study; an existing one is continued.")
@options.option("--storage", "sweeps.db", "SQLite file that stores the studies.", type=click.Path(dir_okay=False))
@options.option(
    "--pruner", "median", "Pruner that stops weak trials early, on validation.", choices=("median", "hyperband", "none")
)
@options.tracking_uri_option
def sweep(
    preset: str,
    search: tuple[str, ...],
    trials: int,
    name: str,
    storage: str,
    pruner: str,
    tracking_uri: str,
    **values: Any,
) -> None:
    """Search hyperparameters with Optuna, on validation only.

    Rerun the command to resume a sweep, raise --trials to extend it, or run it in several terminals to parallelise.

    \b
    vitcifar sweep --preset digits --trials 20
    vitcifar sweep --search "learning_rate=1e-4..1e-2:log" --search "train_layers=head,2,all" --epochs 5
    """
    from vitcifar import tracking
    from vitcifar.experiments.search_space import parse_space
    from vitcifar.experiments.sweep import SweepPlan
    from vitcifar.experiments.sweep import sweep as run_sweep

    fixed = options.given(values)
    config, space = resolve(preset, **fixed), parse_space(search, fixed)
    plan = SweepPlan(
        config=config, preset=preset, space=space, num_trials=trials, name=name, storage=Path(storage), pruner=pruner
    )
    tracking.connect(tracking_uri)
    done = run_sweep(plan)
    best = done.best
    assert best is not None  # a sweep without a complete trial has raised
    format.print_field("trials", f"{done.num_complete} complete, {done.num_pruned} pruned, {done.num_failed} failed")
    format.print_field("parent run", done.run_id)
    format.print_field("best", f"trial {best.number}, validation accuracy {best.accuracy:.4f}, run {best.run_id}")
    format.print_rows([(f"  {setting}", str(value)) for setting, value in best.settings.items()])
    format.print_field("MLflow", format.where_in_mlflow(done.run_id), err=True)
    click.echo(best.command + tracking.store_option())


@options.registry_command
@options.version_option
@options.settings(*DATA_SETTINGS, *ANALYSIS_SETTINGS, "cache_disk", default="as the version was trained")
@options.experiment_option
def evaluate(registry: "Registry", version: str, experiment: str, **values: Any) -> None:
    """Evaluate a registered version on test images, as a run of its own that is linked to the version.

    \b
    vitcifar evaluate --version champion --analysis full --ood digits
    vitcifar evaluate --version 3 --data folder --data-dir images --test-per-class 0
    """
    from vitcifar.experiments.versions import OUTPUT_DIR, evaluate_version

    run_id, evaluation = evaluate_version(registry, version, experiment=experiment, **options.given(values))
    format.print_field("test accuracy", evaluation.accuracy_text())
    format.print_field("run", run_id)
    format.print_places(run_id, OUTPUT_DIR / run_id)


@options.registry_command
@click.argument("version")
@click.argument("other")
@options.settings(*DATA_SETTINGS, default="as VERSION was trained")
@options.option(
    "--margin", 0.0, "Non-inferiority margin in accuracy, 0.01 = one point (0 = no such test).", minimum=0, maximum=1
)
@options.option(
    "--detectable",
    0.01,
    "Accuracy difference to detect, for the sample size reported when inconclusive; 0.01 = one point.",
    type=click.FloatRange(0, 1, min_open=True),
)
@options.experiment_option
def compare(
    registry: "Registry", version: str, other: str, margin: float, detectable: float, experiment: str, **values: Any
) -> None:
    """Test whether VERSION is better or worse than OTHER on the same test images.

    The paired test ends as better, worse or inconclusive, with the sample size needed.

    \b
    vitcifar compare 3 champion
    vitcifar compare latest champion --margin 0.01
    """
    from vitcifar.experiments.versions import OUTPUT_DIR, compare_versions

    run_id, comparison = compare_versions(
        registry, version, other, experiment=experiment, margin=margin, detectable=detectable, **options.given(values)
    )
    click.echo(f"{' against '.join(comparison.names)}: {comparison.summary()}")
    if margin:
        verdict = "yes" if comparison.not_worse else "not shown"
        format.print_field("not worse", f"{verdict} (by more than {100 * margin:g} points)")
    format.print_field("run", run_id)
    format.print_places(run_id, OUTPUT_DIR / run_id)


@options.command
@click.argument("run")
@options.option("--output-dir", "runs", "Folder of the run's files on this machine.")
@options.tracking_uri_option
def sync(run: str, output_dir: str, tracking_uri: str) -> None:
    """Deliver what the tracking store did not take of RUN while it was away.

    A training that ended meanwhile is released: registered, and promoted if its alias was asked for. The next run in
    the same output folder delivers too, but makes no release.

    \b
    vitcifar sync 0f3c9d2b8a6e4c0f9d1e2b3a4c5d6e7f
    """
    from vitcifar import pipeline, tracking
    from vitcifar.training.resume import resumed_config

    tracking.connect(tracking_uri, new=False)
    num_entries, trained = pipeline.sync(run, output_dir)
    click.echo(f"Delivered {num_entries:,} entries of run {run}.")
    if trained:
        print_outcome(trained, resumed_config(trained.folder, {}).promote_to, verbose=False)
        if trained.rejected_because:
            raise click.exceptions.Exit(NOT_PROMOTED)


@options.command
@click.argument("run")
@options.tracking_uri_option
def compare_logs(run: str, tracking_uri: str) -> None:
    """Check that TensorBoard and MLflow hold the same metric values for RUN (an MLflow run id).

    \b
    vitcifar compare-logs 0f3c9d2b8a6e4c0f9d1e2b3a4c5d6e7f
    """
    from vitcifar import tracking
    from vitcifar.experiments.logs import compare_logs

    tracking.connect(tracking_uri)
    agreement = compare_logs(run)
    for difference in agreement.differences:
        click.echo(difference)
    compared = f"{agreement.num_points} values of {agreement.num_metrics} metrics"
    if agreement.differences:
        raise click.ClickException(f"{len(agreement.differences)} differences in {compared}.")
    click.echo(f"MLflow and TensorBoard agree on {compared}.")


@options.registry_command
@click.argument("version")
def reproduce(registry: "Registry", version: str) -> None:
    """Retrain VERSION from its recorded config, seed, images and number of threads, and print what differs.

    \b
    vitcifar reproduce 3
    """
    from vitcifar import pipeline
    from vitcifar.experiments.optimize import check_trained
    from vitcifar.experiments.versions import AGAIN, recorded_config, reproduce
    from vitcifar.training.distributed import is_worker

    check_trained(registry.pull(version))
    if is_worker():
        return pipeline.train_worker(recorded_config(registry.pull(version), **AGAIN))
    result = reproduce(registry, version)
    format.print_differences([*result.differences, *([result.first_step] if result.first_step else [])])
    name = f"{registry.model_name} {result.version}"
    if not result.same_weights:
        where = f", first seen in {result.first_step.name}" if result.first_step else ""
        raise click.ClickException(f"{name} was not reproduced: its weights differ{where}. {result.why}")
    click.echo(f"{name} was reproduced: identical weights, bit for bit.")
