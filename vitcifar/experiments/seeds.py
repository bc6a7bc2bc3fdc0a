"""One recipe trained with several seeds on the same images: nested runs, and their statistics on the parent run."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from vitcifar import outage, pipeline, tracking
from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits, read_splits
from vitcifar.errors import ConfigError, VitCifarError
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.experiments.soup import Soup, check_soup, make_soup, release_soup
from vitcifar.model.network import Classifier, check_network
from vitcifar.networks import find_teacher, make_network
from vitcifar.presets import run_name
from vitcifar.progress import notify, several_runs
from vitcifar.report.style import BLUE, RED, dress, new_figure
from vitcifar.training.distributed import launched_processes
from vitcifar.training.loop import TrainResult

PAGE = Path(__file__).with_name("seeds.md.j2")  # of the parent in MLflow
TEST_METRICS = ("accuracy", "f1_macro", "loss", "ece", "brier")
SHARES = ("accuracy", "f1_macro", "ece")  # these are at most 1
EXPLANATION = (
    "Mean over {} seeds that trained on the same images. The 95% interval is Student's t over the seeds: it covers the "
    "variation from initialisation, shuffling and augmentation. It does not cover the choice of test images: each run "
    "has an interval of its own for that."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanInterval:
    """The mean of a metric over the seeds with its 95% interval, and the standard deviation."""

    mean: float
    low: float
    high: float
    deviation: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedRun:
    """The run of one seed."""

    seed: int
    run_id: str
    metrics: Mapping[str, float]
    evaluation: Evaluation
    result: TrainResult
    network: Classifier | None  # of the best run only
    folder: Path = Path()  # of its checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedRuns:
    """The result of training with several seeds."""

    run_id: str  # the parent's
    runs: tuple[SeedRun, ...]
    intervals: Mapping[str, MeanInterval]
    best: SeedRun
    released: pipeline.Trained
    soup: Soup | None = None


def train_seeds(config: TrainConfig, num_seeds: int, soup: str = "none") -> SeedRuns:
    """Train with `seed`, `seed` + 1, ... on the same images, each as a run under one parent; raises VitCifarError.

    The parent gets the mean and the interval of the main test metrics. The run that is best on validation is released,
    or a `soup` of the runs (greedy or uniform) that is better there.
    When a run fails, the parent ends FAILED with the same message; runs that are complete stay.
    """
    if config.resume != "none":
        raise ConfigError("resume continues one run: leave --seeds out.")
    check_soup(soup, config)
    config, splits = prepare(config, "each seed is a run of its own")
    last = config.seed + num_seeds - 1
    name = run_name(config).replace(f" s{config.seed}", f" s{config.seed}-{last}", 1)
    with pipeline.start_run(config, "seeds", name=name if config.run_name == "none" else None) as parent:
        parent.log_params({**dataclasses.asdict(config), "fingerprint": splits.fingerprint, "num_seeds": num_seeds})
        runs: list[SeedRun] = []
        with several_runs():
            for number, seed in enumerate(range(config.seed, config.seed + num_seeds), 1):
                notify(f"Seed {seed} ({number} of {num_seeds}).")
                runs = drop_networks([*runs, train_seed(config, splits, seed)])
        intervals, best = log_seeds(parent, runs), best_run(runs)
        parent.set_tags({"best_seed": str(best.seed), "best_run": best.run_id})
        assert best.network is not None
        config = dataclasses.replace(config, seed=best.seed)
        made = None
        if soup != "none":
            made = make_soup(soup, sorted(runs, key=on_validation, reverse=True), best.network, splits, config)
            parent.log_json("soup.json", {**dataclasses.asdict(made), "kept": made.kept})
            parent.set_tags({"soup": made.summary()})
        if made and made.kept:
            released = release_soup(made, best.network, splits, config, best.result)
        else:
            with pipeline.start_run(config, "seed", run_id=best.run_id, nested=True) as run, outage.hurried():
                released = pipeline.release(run, best.network, splits, config, best.evaluation, best.result)
        parent.set_tags(released.tags(config.promote_to))
    return SeedRuns(
        run_id=parent.run_id, runs=tuple(runs), intervals=intervals, best=best, released=released, soup=made
    )


def prepare(config: TrainConfig, reason: str) -> tuple[TrainConfig, Splits]:
    """The config of many runs, its names resolved, and their images, all checked before there is a run.

    Raises VitCifarError; ConfigError with the `reason` when several processes are to train one run together.
    """
    if config.num_processes > 1 or launched_processes() > 1:
        raise ConfigError(f"Several processes train one run together, and {reason}: start one process.")
    config = pipeline.check(config)
    splits = read_splits(config)
    check_network(config, splits.class_names)
    find_teacher(config, splits.class_names)
    return config, splits


def train_seed(config: TrainConfig, splits: Splits, seed: int) -> SeedRun:
    """Train and test with one seed; errors name the seed."""
    config = dataclasses.replace(config, seed=seed)
    try:
        network = make_network(config, splits.class_names)
        name = run_name(config) if config.run_name == "none" else f"{config.run_name} s{seed}"
        with pipeline.start_run(config, "seed", name=name, nested=True, tags={"seed": str(seed)}) as run:
            result, evaluation = pipeline.fit_and_test(run, network, splits, config)
    except VitCifarError as error:
        raise type(error)(f"Seed {seed}: {error}") from error
    metrics = {**result.best_metrics, **{f"test/{name}": getattr(evaluation, name) for name in TEST_METRICS}}
    return SeedRun(
        seed=seed,
        run_id=run.run_id,
        metrics=metrics,
        evaluation=evaluation,
        result=result,
        network=network,
        folder=run.folder,
    )


def best_run(runs: Sequence[SeedRun]) -> SeedRun:
    """The run with the highest accuracy on validation, then the lowest loss; the test split has no influence."""
    return max(runs, key=on_validation)


def on_validation(run: SeedRun) -> tuple[float, float]:
    return run.metrics["validation/accuracy"], -run.metrics["validation/loss"]


def drop_networks(runs: Sequence[SeedRun]) -> list[SeedRun]:
    """The runs with the network of the best one only: five ViT-L/16 are 6 GB."""
    best = best_run(runs)
    return [run if run is best else dataclasses.replace(run, network=None) for run in runs]


def mean_interval(values: Sequence[float], highest: float = math.inf) -> MeanInterval:
    """Mean, Student's t interval (95%, two-sided) and sample standard deviation of at least two values.

    The interval is cut to what the metric can be, 0 to `highest`: few seeds tell little.
    """
    from scipy.stats import t

    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = float(t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return MeanInterval(mean=mean, low=max(0.0, mean - half), high=min(highest, mean + half), deviation=deviation)


def log_seeds(parent: tracking.Run, runs: Sequence[SeedRun]) -> dict[str, MeanInterval]:
    """Write the statistics over the seeds as metrics, JSON, figure and description of the parent."""
    names = [*(f"test/{name}" for name in TEST_METRICS), "validation/accuracy", "validation/loss"]
    intervals = {
        name: mean_interval([run.metrics[name] for run in runs], 1.0 if name.endswith(SHARES) else math.inf)
        for name in names
    }
    rows = {name: dataclasses.asdict(interval) for name, interval in intervals.items()}
    compared = {name: rows[name] for name in ("test/accuracy", "validation/accuracy")}
    parent.log(0, {f"{name}_{part}": value for name, row in compared.items() for part, value in row.items()})
    explanation = EXPLANATION.format(len(runs))
    page = jinja2.Template(PAGE.read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True)
    text = page.render(explanation=explanation, runs=runs, intervals=intervals, best=best_run(runs))
    parent.note(text)
    seeds = [{"seed": run.seed, "run_id": run.run_id, **run.metrics} for run in runs]
    parent.log_table("seeds_table", {name: [row[name] for row in seeds] for name in seeds[0]})
    parent.log_json("seeds.json", {"explanation": explanation, "seeds": seeds, "intervals": rows})
    parent.log_figure("seeds/accuracy", plot_seeds(runs, intervals["test/accuracy"]))
    return intervals


def plot_seeds(runs: Sequence[SeedRun], interval: MeanInterval) -> Figure:
    """The test accuracy of each seed, with the mean and its interval."""
    figure = new_figure(6.2, 3.4)
    axes = figure.subplots()
    axes.axhspan(interval.low, interval.high, color=BLUE, alpha=0.12, linewidth=0)
    axes.axhline(interval.mean, color=BLUE, linewidth=1.5)
    best = best_run(runs)
    for run in runs:
        axes.plot(str(run.seed), run.metrics["test/accuracy"], "o", color=RED if run is best else BLUE)
    axes.set_xlabel("seed (orange: best on validation, released)")
    note = f"line and band: mean {interval.mean:.4f}, 95% interval {interval.low:.4f} to {interval.high:.4f}"
    dress(axes, "Test accuracy of each seed", note=note)
    return figure
