"""A model soup: the mean of the weights of several seeds that started from the same weights (Wortsman et al. 2022)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from vitcifar import outage, pipeline
from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits
from vitcifar.errors import ConfigError, ReleaseError
from vitcifar.model.network import Classifier
from vitcifar.presets import nearest_preset, train_command
from vitcifar.progress import notify
from vitcifar.release.build import git_state
from vitcifar.release.manifest import Manifest
from vitcifar.report.log import log_inputs
from vitcifar.training import checkpoint
from vitcifar.training.feature_cache import Embedder, open_feature_cache
from vitcifar.training.loop import TrainResult

if TYPE_CHECKING:
    from vitcifar.experiments.seeds import SeedRun

Weights = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy and loss (cross-entropy, nats per image) on validation."""

    accuracy: float
    loss: float

    def better_than(self, other: "Score") -> bool:
        """Whether the accuracy is higher or, at equal accuracy, the loss is lower."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)

    def __str__(self) -> str:
        return f"validation accuracy {self.accuracy:.4f}, loss {self.loss:.4f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup:
    """A soup of some of the seeds, and the best single one, both scored alike on validation."""

    method: str  # greedy or uniform
    num_seeds: int
    seeds: tuple[int, ...]
    run_ids: tuple[str, ...]
    score: Score
    single: Score

    @property
    def kept(self) -> bool:
        """Whether it is better than the best single run."""
        return self.score.better_than(self.single)

    def summary(self) -> str:
        """What the soup is, and how it compares, in one sentence."""
        seeds = f"seeds {', '.join(map(str, self.seeds))}" if len(self.seeds) > 1 else f"seed {self.seeds[0]} alone"
        verdict = "better than" if self.kept else "not better than"
        return f"{self.method} soup of {seeds}: {self.score}; {verdict} the best seed with {self.single}"


def check_soup(method: str, config: TrainConfig) -> None:
    """Raise ConfigError for runs whose weights cannot be averaged."""
    if method == "none":
        return
    if config.weights == "none":
        raise ConfigError(
            "soup averages runs that start from the same weights, but weights is none, and each seed starts from its "
            "own: type --weights with a file or a version, or --soup none."
        )
    if config.lora_rank:
        raise ConfigError(
            "soup averages weights, which the factors of LoRA are not: type --lora-rank 0 or --soup none."
        )


def make_soup(method: str, runs: Sequence["SeedRun"], network: Classifier, splits: Splits, config: TrainConfig) -> Soup:
    """Average the weights of the runs, the best first, whose network this is; it ends with the soup, if that is better.

    A uniform soup is the mean of all. A greedy one takes each run in turn that makes it better on validation; where
    Wortsman et al. compare the accuracy alone, the loss decides at equal accuracy.
    """
    # The soups of frozen backbones differ in their heads alone, on the same embeddings.
    embedder = Embedder(network, config, open_feature_cache(config))

    def score(weights: Weights) -> Score:
        network.load_state_dict(weights, strict=False)
        logits, _ = embedder.predict(splits.validation)
        labels = torch.from_numpy(splits.validation.labels)
        values = torch.from_numpy(logits).double()  # (N, K)
        accuracy = (values.argmax(dim=1) == labels).double().mean()
        return Score(accuracy=float(accuracy), loss=float(functional.cross_entropy(values, labels)))

    first = best_weights(runs[0])
    single = score(first)
    mix = mix_greedily if method == "greedy" else mix_all
    weights, taken = mix(runs, first, single, score)
    soup = Soup(
        method=method,
        num_seeds=len(runs),
        seeds=tuple(run.seed for run in taken),
        run_ids=tuple(run.run_id for run in taken),
        score=score(weights),
        single=single,
    )
    if not soup.kept:
        network.load_state_dict(first, strict=False)
    return soup


def mix_all(
    runs: Sequence["SeedRun"], first: Weights, single: Score, score: Callable[[Weights], Score]
) -> tuple[Weights, list["SeedRun"]]:
    """The mean of all runs, and these."""
    weights = first
    for number, run in enumerate(runs[1:], start=2):
        weights = add(weights, best_weights(run), number)
    return weights, [*runs]


def mix_greedily(
    runs: Sequence["SeedRun"], first: Weights, single: Score, score: Callable[[Weights], Score]
) -> tuple[Weights, list["SeedRun"]]:
    """The mean of the runs that made it better when they were added, and these."""
    weights, taken, best = first, [runs[0]], single
    for run in runs[1:]:
        candidate = add(weights, best_weights(run), len(taken) + 1)
        if (scored := score(candidate)).better_than(best):
            weights, taken, best = candidate, [*taken, run], scored
    return weights, taken


def add(mean: Weights, weights: Weights, number: int) -> Weights:
    """The mean of `number` weights, of which `mean` is that of all but the last."""
    return {name: torch.lerp(value, weights[name], 1 / number) for name, value in mean.items()}


def best_weights(run: "SeedRun") -> Weights:
    """The weights that a run trained, on the CPU, at its best epoch."""
    weights: Weights = checkpoint.load(run.folder / checkpoint.BEST)["weights"]
    return weights


def release_soup(
    soup: Soup, network: Classifier, splits: Splits, config: TrainConfig, result: TrainResult
) -> pipeline.Trained:
    """Test, build and register a soup, as a run of its own; `result` is that of the best single run."""
    name = f"{soup.method} soup of seeds {', '.join(map(str, soup.seeds))}"
    metrics = {"validation/accuracy": soup.score.accuracy, "validation/loss": soup.score.loss}
    result = dataclasses.replace(
        result,
        best_epoch=1,
        num_epochs=1,
        num_steps=1,
        best_metrics=metrics,
        method=f"The weights are the mean of several runs: {soup.summary()}",
        options=f" --seeds {soup.num_seeds} --soup {soup.method}",
    )
    with pipeline.start_run(config, "soup", name=name, nested=True, tags={"soup": ",".join(soup.run_ids)}) as run:
        notify(f"The soup is better than the best seed: {soup.summary()}.")
        log_inputs(run, config, splits, network, git_state())
        run.log(1, {**metrics, "validation/best_accuracy": soup.score.accuracy})
        weights = {name: weight.detach().cpu() for name, weight in network.named_parameters() if weight.requires_grad}
        checkpoint.save({"weights": weights}, run.folder / checkpoint.BEST)
        evaluation = pipeline.test(run, network, splits, config, result)
        checks = {"soup": dataclasses.asdict(soup)}
        with outage.hurried():
            return pipeline.release(run, network, splits, config, evaluation, result, checks=checks)


def require_single_run(release: Manifest, config: TrainConfig) -> None:
    """Raise ReleaseError for a version that no single run has trained, with the command that makes it again."""
    if soup := release.checks.get("soup"):
        config = dataclasses.replace(config, seed=min(config.seed, *soup["seeds"]))
        again = f"{train_command(nearest_preset(config), config)} --seeds {soup['num_seeds']} --soup {soup['method']}"
        raise ReleaseError(f"Version {release.version} is a soup of several runs: to make one again, type {again}.")
