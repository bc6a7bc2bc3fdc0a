"""Out-of-distribution (OOD) detection from logits: how well a classifier's outputs detect images of another source.

Shapes: N images, K classes, logits (N, K). Every score is high for in-distribution images."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import entr, logsumexp
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from vitcifar.config import TrainConfig
from vitcifar.data.files import ImageFiles, is_image, is_system
from vitcifar.data.image import known_endings
from vitcifar.data.sources import open_source
from vitcifar.data.splits import hash_order
from vitcifar.errors import ConfigError, DataError
from vitcifar.evaluation.calibration import softmax

DATA_DIR = Path("data")  # of CIFAR-10 as the OOD source


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OODScore:
    """How well one score separates in-distribution from OOD images; the interval is Hanley and McNeil's, 95%."""

    name: str
    auroc: float  # 0.5 = chance
    auroc_low: float
    auroc_high: float
    average_precision: float  # of detecting OOD images
    false_positives: float  # share of OOD images accepted where 95% of the others are (FPR95)
    threshold: float  # the score there
    inside: np.ndarray  # (N_in,) scores of in-distribution images
    outside: np.ndarray  # (N_out,) scores of OOD images

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types, without the scores of single images."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in ("inside", "outside")}


def ood_scores(logits: np.ndarray, temperature: float = 1.0) -> Mapping[str, np.ndarray]:
    """Scores (N,) by name, high = in-distribution.

    max_softmax (Hendrycks & Gimpel 2017), max_logit (Hendrycks et al. 2022), energy (Liu et al. 2020),
    entropy (negative, of the probabilities) and margin (between the two largest probabilities).
    """
    logits = np.asarray(logits, np.float64)
    probabilities = softmax(logits, temperature)
    ranked = np.sort(probabilities, axis=1)
    return {
        "max_softmax": ranked[:, -1],
        "max_logit": logits.max(axis=1),
        "energy": temperature * logsumexp(logits / temperature, axis=1),
        "entropy": -entr(probabilities).sum(axis=1),
        "margin": ranked[:, -1] - ranked[:, -2],
    }


def evaluate_ood(inside: np.ndarray, outside: np.ndarray, temperature: float = 1.0) -> tuple[OODScore, ...]:
    """Every score on logits of in-distribution (N_in, K) and OOD images (N_out, K), the best AUROC first."""
    scores_inside, scores_outside = ood_scores(inside, temperature), ood_scores(outside, temperature)
    results = [evaluate_score(name, scores_inside[name], scores_outside[name]) for name in scores_inside]
    return tuple(sorted(results, key=lambda result: -result.auroc))


def evaluate_score(name: str, inside: np.ndarray, outside: np.ndarray) -> OODScore:
    """How well one score, high for in-distribution images, separates (N_in,) from (N_out,) values."""
    scores = np.concatenate([inside, outside])
    is_inside = np.arange(len(scores)) < len(inside)
    auroc = float(roc_auc_score(is_inside, scores))
    low, high = auroc_interval(auroc, len(inside), len(outside))
    threshold = float(np.sort(inside)[int(np.floor(0.05 * len(inside)))])
    return OODScore(
        name=name,
        auroc=auroc,
        auroc_low=low,
        auroc_high=high,
        average_precision=float(average_precision_score(~is_inside, -scores)),
        false_positives=float((outside >= threshold).mean()),
        threshold=threshold,
        inside=inside,
        outside=outside,
    )


def auroc_interval(auroc: float, num_inside: int, num_outside: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of an area under the ROC curve, clipped to [0, 1] (Hanley & McNeil 1982)."""
    # Probability that two inside scores exceed one outside score, and that one inside score exceeds two outside.
    two_above, above_two = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc)
    variance += (num_inside - 1) * (two_above - auroc**2) + (num_outside - 1) * (above_two - auroc**2)
    half = float(norm.ppf((1 + confidence) / 2)) * np.sqrt(max(0.0, variance) / (num_inside * num_outside))
    return float(max(0.0, auroc - half)), float(min(1.0, auroc + half))


def ood_source(config: TrainConfig) -> str:
    """The source of OOD images: none, digits, cifar10 or a folder. Raises ConfigError if it is the training data."""
    if config.ood == "auto":
        return "digits" if config.analysis == "full" and config.data != "digits" else "none"
    if config.ood == config.data:
        raise ConfigError(f"ood is {config.ood!r}, the same as data: choose another source of images with --ood.")
    return config.ood


def ood_name(config: TrainConfig) -> str:
    """The name of the OOD source in a report: of a folder, its last two parts."""
    source = ood_source(config)
    named = source in ("none", "digits", "cifar10")
    return source if named else "/".join(Path(source).expanduser().absolute().parts[-2:])


def read_ood_images(config: TrainConfig, limit: int) -> Sequence[np.ndarray]:
    """At most `limit` OOD images, selected by hash; empty if the source is none. Raises ConfigError, DataError."""
    name = ood_source(config)
    if name == "none":
        return []
    if name in ("digits", "cifar10"):
        source = open_source(name, DATA_DIR)
        return [*source.read("test", np.sort(hash_order(source.ids("test"))[:limit])).images]
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: type --ood none, digits, cifar10 or a folder of images.")
    found = (path for path in folder.rglob("*") if not any(map(is_system, path.relative_to(folder).parts)))
    files = sorted(path for path in found if path.is_file() and is_image(path))
    if not files:
        raise DataError(f"{folder} holds no images: expected files that end with {', '.join(known_endings())}.")
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    return ImageFiles(files[index] for index in np.sort(hash_order(names)[:limit]))


def check_ood(config: TrainConfig) -> None:
    """Raise what `read_ood_images` raises for this config, without loading an archive that is already on disk."""
    if ood_source(config) != "cifar10" or not any(DATA_DIR.glob("cifar-10-*")):
        [*read_ood_images(config, limit=1)]  # decoded
