"""Out-of-distribution detection from logits: how well a classifier's own outputs tell images of another source apart.

Shapes: N images, K classes, logits (N, K). Every score is high for images like those of training."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from vitcifar.config import TrainConfig
from vitcifar.data.image import read_image
from vitcifar.data.sources import ENDINGS, open_source
from vitcifar.errors import ConfigError, DataError
from vitcifar.evaluation.calibration import softmax


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OODScore:
    """How well one score tells the images of a data set from images of another source."""

    name: str
    auroc: float  # 0.5 = no better than chance
    auroc_low: float
    auroc_high: float
    average_precision: float  # of finding the outsiders
    false_positives: float  # share of outsiders let in where 95% of the insiders are (FPR95)
    threshold: float  # the score at that place
    inside: np.ndarray  # (N_in,)
    outside: np.ndarray  # (N_out,)


def ood_scores(logits: np.ndarray, temperature: float = 1.0) -> Mapping[str, np.ndarray]:
    """Scores (N,) by name, high = like training.

    max_softmax (Hendrycks & Gimpel 2017), max_logit (Hendrycks et al. 2022), energy (Liu et al. 2020),
    entropy (negative, of the probabilities) and margin (between the two largest probabilities).
    """
    logits = np.asarray(logits, np.float64)
    probabilities = softmax(logits, temperature)
    ranked = np.sort(probabilities, axis=1)
    second = ranked[:, -2] if logits.shape[1] > 1 else 0.0
    surprise = np.where(probabilities > 0, probabilities * np.log(np.maximum(probabilities, 1e-300)), 0.0)
    return MappingProxyType(
        {
            "max_softmax": ranked[:, -1],
            "max_logit": logits.max(axis=1),
            "energy": temperature * logsumexp(logits / temperature, axis=1),
            "entropy": surprise.sum(axis=1),
            "margin": ranked[:, -1] - second,
        }
    )


def evaluate_ood(inside: np.ndarray, outside: np.ndarray, temperature: float = 1.0) -> tuple[OODScore, ...]:
    """Every score on logits of images inside (N_in, K) and of another source (N_out, K), the best AUROC first."""
    scores_inside, scores_outside = ood_scores(inside, temperature), ood_scores(outside, temperature)
    results = [evaluate_score(name, scores_inside[name], scores_outside[name]) for name in scores_inside]
    return tuple(sorted(results, key=lambda result: -result.auroc))


def evaluate_score(name: str, inside: np.ndarray, outside: np.ndarray) -> OODScore:
    """How well one score, high for insiders, separates two sets of images."""
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
    """Interval of an area under the ROC curve, cut at 0 and 1 (Hanley & McNeil 1982)."""
    # Chances that two insiders are both above one outsider, and that one insider is above two outsiders.
    two_above, above_two = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc)
    variance += (num_inside - 1) * (two_above - auroc**2) + (num_outside - 1) * (above_two - auroc**2)
    half = float(norm.ppf((1 + confidence) / 2)) * np.sqrt(max(0.0, variance) / (num_inside * num_outside))
    return float(max(0.0, auroc - half)), float(min(1.0, auroc + half))


def ood_source(config: TrainConfig) -> str:
    """Where the images of something else come from; raises ConfigError when they are the same ones."""
    if config.ood == "auto":
        return "digits" if config.analysis == "full" and config.data != "digits" else "none"
    if config.ood == config.data:
        raise ConfigError(f"ood is {config.ood!r}, as data is: they are to be images of something else.")
    return config.ood


def ood_name(config: TrainConfig) -> str:
    """What the images of something else are called in a report: of a folder, its last two names."""
    source = ood_source(config)
    return (
        source if source in ("none", "digits", "cifar10") else "/".join(Path(source).expanduser().absolute().parts[-2:])
    )


def read_ood_images(config: TrainConfig, limit: int) -> list[np.ndarray]:
    """At most `limit` images of something else, chosen by hash; none when none are asked for. Raises DataError."""
    name = ood_source(config)
    if name == "none" or config.analysis == "none":
        return []
    if name in ("digits", "cifar10"):
        source = open_source(name, Path(config.data_dir if config.data == "cifar10" else "data"))
        return [*source.read("test", choose(source.ids("test"), limit)).images]
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: type --ood none, digits, cifar10 or a folder of images.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not files:
        raise DataError(f"{folder} holds no images: expected files that end with {', '.join(ENDINGS)}.")
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    return [read_image(files[index]) for index in choose(names, limit)]


def choose(ids: tuple[str, ...], limit: int) -> np.ndarray:
    """At most `limit` places, the same on every machine."""
    ranks = [hashlib.sha256(id.encode()).digest() for id in ids]
    return np.sort(np.array(sorted(range(len(ids)), key=ranks.__getitem__)[:limit], dtype=np.int64))


def check_ood(config: TrainConfig) -> None:
    """Raise what `read_ood_images` raises for this config, without loading an archive that is already on disk."""
    if ood_source(config) != "cifar10" or not any(Path("data").glob("cifar-10-*")):
        read_ood_images(config, limit=1)
