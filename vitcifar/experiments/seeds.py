"""One recipe with several seeds, on the same images: nested runs, and what the seeds make of it on their parent."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitcifar import pipeline, tracking
from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits
from vitcifar.errors import ConfigError, VitCifarError
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import read_ood_images
from vitcifar.experiments.workers import refuse_several

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitcifar.model.network import Classifier

MAIN = ("accuracy", "f1_macro", "loss", "ece", "brier")  # of the test images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """What a number is over the seeds: its mean with a 95 % interval, and its standard deviation."""

    mean: float
    low: float
    high: float
    deviation: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Child:
    """The run of one seed."""

    seed: int
    run_id: str
    metrics: Mapping[str, float]
    config: TrainConfig
    evaluation: Evaluation
    network: "Classifier | None"  # kept of the best one alone

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: accuracy on validation, then loss on validation. The test images have no say."""
        return self.metrics["validation/accuracy"], -self.metrics["validation/loss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeds:
    """What several seeds ended with."""

    run_id: str  # the parent's
    children: tuple[Child, ...]
    spreads: Mapping[str, Spread]
    best: Child
    released: pipeline.Trained


def train_seeds(config: TrainConfig, num_seeds: int) -> Seeds:
    """Train `seed`, `seed` + 1, ... on the same images, each as a run under one parent; raises VitCifarError.

    The parent gets the mean and interval of the main test metrics. The child that is best on validation is released.
    When a child fails the parent ends FAILED with its sentence; children that had ended stay.
    """
    if config.resume != "none":
        raise ConfigError("resume goes on with one run: leave --seeds out.")
    refuse_several("several seeds are several runs", config.num_processes)
    read_ood_images(config, limit=1)
    config = pipeline.resolve_names(config)
    splits = pipeline.read_splits(config)
    pipeline.make_network(config, splits.class_names)  # weights that are not there are told before there is a run
    with pipeline.start_run(config) as parent:
        parent.log_params({**dataclasses.asdict(config), "fingerprint": splits.fingerprint, "num_seeds": num_seeds})
        children: list[Child] = []
        for seed in range(config.seed, config.seed + num_seeds):
            children = keep_best_network([*children, train_child(config, splits, seed)])
        spreads = record_seeds(parent, children)
        best = max(children, key=lambda child: child.rank)
        released = release_child(parent, best, splits)
    return Seeds(run_id=parent.run_id, children=tuple(children), spreads=spreads, best=best, released=released)


def train_child(config: TrainConfig, splits: Splits, seed: int) -> Child:
    """One seed, up to its test; what fails says which seed it was."""
    config = dataclasses.replace(config, seed=seed)
    try:
        network = pipeline.make_network(config, splits.class_names)
        with pipeline.start_run(config, run_name=f"seed-{seed}", nested=True, tags={"seed": str(seed)}) as run:
            outcome, evaluation = pipeline.learn_and_test(run, network, splits, config)
    except VitCifarError as error:
        raise type(error)(f"Seed {seed}: {error}") from error
    metrics = {**outcome.best_metrics, **{f"test/{name}": getattr(evaluation, name) for name in MAIN}}
    return Child(seed=seed, run_id=run.run_id, metrics=metrics, config=config, evaluation=evaluation, network=network)


def keep_best_network(children: Sequence[Child]) -> list[Child]:
    """Let go of every network but that of the best child so far: five ViT-L/16 are 6 GB."""
    best = max(children, key=lambda child: child.rank)
    return [child if child is best else dataclasses.replace(child, network=None) for child in children]


def release_child(parent: tracking.Run, best: Child, splits: Splits) -> pipeline.Trained:
    """Release the best child from its own run, and have the parent say which."""
    parent.set_tags({"best_seed": str(best.seed), "best_run": best.run_id})
    assert best.network is not None
    with pipeline.start_run(best.config, run_id=best.run_id, nested=True) as run:
        released = pipeline.release(run, best.network, splits, best.config, best.evaluation)
    parent.set_tags({"version": f"{released.model_name}/{released.version}"})
    return released


def spread(values: Sequence[float]) -> Spread:
    """Mean, Student's t interval (95 %, two-sided) and sample standard deviation of two values or more."""
    from scipy.stats import t

    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = float(t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return Spread(mean=mean, low=mean - half, high=mean + half, deviation=deviation)


def record_seeds(parent: tracking.Run, children: Sequence[Child]) -> dict[str, Spread]:
    """Spreads as metrics, as JSON, as a figure, and in words as the parent's description."""
    names = [*(f"test/{name}" for name in MAIN), "validation/accuracy", "validation/loss"]
    spreads = {name: spread([child.metrics[name] for child in children]) for name in names}
    parent.log(
        0,
        {
            f"seeds/{name}_{part}": value
            for name, found in spreads.items()
            for part, value in dataclasses.asdict(found).items()
        },
    )
    words = describe(children, spreads)
    parent.set_tags({"mlflow.note.content": words})
    rows = [{"seed": child.seed, "run_id": child.run_id, **child.metrics} for child in children]
    spread_rows = {name: dataclasses.asdict(found) for name, found in spreads.items()}
    parent.log_json("seeds.json", {"what": meaning(len(children)), "seeds": rows, "spreads": spread_rows})
    parent.log_figure("seeds/accuracy", draw(children, spreads["test/accuracy"]))
    return spreads


def meaning(num_seeds: int) -> str:
    """What the parent's numbers are."""
    return (
        f"Mean over {num_seeds} seeds that trained on the same images. The 95 % interval is Student's t over the "
        "seeds: it says how far new weights and another order of the batches move the result. It does not say how far "
        "other test images would: that is each child's own interval."
    )


def describe(children: Sequence[Child], spreads: Mapping[str, Spread]) -> str:
    """Markdown for the parent's page in MLflow."""
    best = max(children, key=lambda child: child.rank)
    lines = [meaning(len(children)), "", "| metric | mean | 95 % interval | standard deviation |", "|---|---|---|---|"]
    for name, found in spreads.items():
        lines.append(f"| {name} | {found.mean:.4f} | {found.low:.4f} to {found.high:.4f} | {found.deviation:.4f} |")
    lines += ["", "| seed | validation accuracy | test accuracy | run |", "|---|---|---|---|"]
    for child in children:
        accuracies = f"{child.metrics['validation/accuracy']:.4f} | {child.metrics['test/accuracy']:.4f}"
        lines.append(f"| {child.seed} | {accuracies} | {child.run_id} |")
    lines += ["", f"Seed {best.seed} is the best on validation: it is the one that is released."]
    return "\n".join(lines)


def draw(children: Sequence[Child], found: Spread) -> "Figure":
    """Each seed's test accuracy, with their mean and its interval."""
    from vitcifar.report.style import BLUE, RED, dress, new_figure

    figure = new_figure(6.2, 3.4)
    axes = figure.subplots()
    axes.axhspan(found.low, found.high, color=BLUE, alpha=0.12, linewidth=0)
    axes.axhline(found.mean, color=BLUE, linewidth=1.5)
    best = max(children, key=lambda child: child.rank)
    for child in children:
        axes.plot(str(child.seed), child.metrics["test/accuracy"], "o", color=RED if child is best else BLUE)
    axes.set_xlabel("seed (orange: best on validation, released)")
    note = f"line and band: mean {found.mean:.4f}, 95 % interval {found.low:.4f} to {found.high:.4f} over the seeds"
    dress(axes, "Test accuracy of each seed", note=note)
    return figure
