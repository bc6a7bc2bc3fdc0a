"""The audit of a dataset before training: features of the network that training would start from, and the report."""

import datetime
from functools import partial
from pathlib import Path

import numpy as np

from vitcifar import __version__
from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits, read_splits
from vitcifar.errors import ConfigError, TrainingError
from vitcifar.evaluation.audit import Audit, audit_images
from vitcifar.evaluation.duplicates import concat_embeddings, thumbnails
from vitcifar.evaluation.label_errors import cross_validated_probabilities
from vitcifar.model.network import Classifier
from vitcifar.networks import make_network
from vitcifar.progress import bar, notify
from vitcifar.registry.aliases import resolve_names
from vitcifar.report.audit import audit_csv, audit_sections
from vitcifar.report.html import html_report
from vitcifar.report.log import data_name
from vitcifar.training.distributed import choose_device
from vitcifar.training.feature_cache import Embedder, open_feature_cache
from vitcifar.uris import check_writable

REPORT, TABLE = "audit.html", "audit.csv"
PIXELS = 8  # side of the thumbnails whose pixels are the features where there is no network
Features = dict[str, np.ndarray]  # split -> (N, D)


def audit_data(config: TrainConfig, folder: Path, *, weights_required: bool) -> Audit:
    """Audit the images that a config selects, and write report and table to a folder.

    Label errors are judged with features of the config's backbone, or of the pixels if its weights are none. Weights
    that cannot be had are an error if they are required; otherwise labels are not judged. Raises VitCifarError.
    """
    check_writable(folder, "name another with --out")
    config = resolve_names(config)
    splits = read_splits(config)
    network, notes = None, []
    if config.weights != "none":
        try:
            network = make_network(config, splits.class_names).to(choose_device(config.device))
        except TrainingError as error:
            if weights_required:
                raise
            notes.append(f"Labels were not judged: that needs features of a network. {error}")
    features = None if notes else compute_features(network, splits, config)
    probabilities = {} if features is None else judge(features, splits, config.data_seed)
    small = {split: thumbnails(dataset.images) for split, dataset in splits.datasets.items()}
    if network is not None and features is not None:
        small = {split: concat_embeddings(rows, features[split]) for split, rows in small.items()}
    audit = audit_images(splits.datasets, probabilities=probabilities, embeddings=small, notes=notes)
    used = "none" if features is None else config.weights if network is not None else f"{PIXELS} x {PIXELS} pixels"
    write_audit(audit, config, splits, folder, features=used)
    return audit


def compute_features(network: Classifier | None, splits: Splits, config: TrainConfig) -> Features:
    """The embeddings of all splits, from the cache if they are there; without a network the pixels of thumbnails."""
    if network is None:
        return {split: thumbnails(dataset.images, PIXELS) for split, dataset in splits.datasets.items()}
    embedder, features = Embedder(network, config, open_feature_cache(config)), {}
    for split, dataset in splits.datasets.items():
        progress = partial(bar, title=f"Features of {split}", unit="batches")
        features[split] = embedder.embed(dataset, progress=progress)
    return features


def judge(features: Features, splits: Splits, seed: int) -> Features:
    """Probabilities (N, K) of every image of every split, by heads that were fitted to other images."""
    notify("Fitting heads to the features, by cross-validation.")
    labels = [splits.datasets[split].labels for split in features]
    rows = np.concatenate([*features.values()])
    probabilities = cross_validated_probabilities(rows, np.concatenate(labels), seed=seed)
    return dict(zip(features, np.split(probabilities, np.cumsum([*map(len, labels)])[:-1]), strict=True))


def write_audit(audit: Audit, config: TrainConfig, splits: Splits, folder: Path, *, features: str) -> None:
    """Write the report and the table. Raises ConfigError."""
    facts = {
        "Date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "Features": features,
        "Fingerprint of the images": splits.fingerprint[:16],
        "Made by": f"vitcifar {__version__}",
    }
    subtitle = "What to look at before training. Nothing here is certain: look at an image before you change it."
    html = html_report(f"Data audit of {data_name(config)}", audit_sections(audit), subtitle=subtitle, facts=facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(html, encoding="utf-8")
        (folder / TABLE).write_text(audit_csv(audit), encoding="utf-8", newline="")
    except OSError as error:
        problem = f"The audit cannot be written to {folder} ({error.strerror or error})"
        raise ConfigError(f"{problem}: name another folder with --out.") from error
