"""Label errors that `vitcifar data audit` finds: of 5% of the labels flipped, the share among the first 10% listed.

    VITCIFAR_SAMPLE=images python benchmarks/label_errors.py

The labels of the audited images are flipped to another class, drawn with a seed; the audit sees the flipped ones alone.
By chance, 10% of the images hold 10% of the flipped ones. Digits are judged by their pixels. The images of CIFAR-10's
sample, `train/<class>/` and `test/<class>/`, are judged by their pixels too, and by a small backbone that stands for
pretrained weights: it was trained once on other images of the sample. The list may be shorter than 10% of the images.
The last line is the mean share for that backbone, divided by chance.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.data.splits import read_splits
from vitcifar.evaluation.duplicates import thumbnails
from vitcifar.evaluation.label_errors import cross_validated_probabilities, find_label_errors
from vitcifar.experiments.audit import PIXELS
from vitcifar.inference.machine import this_machine
from vitcifar.model.network import Classifier, build_network
from vitcifar.model.predict import predict_embeddings
from vitcifar.presets import resolve
from vitcifar.training.loop import fit

FLIPPED, LISTED = 0.05, 0.1  # shares of the images


def flip(labels: np.ndarray, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels with some of them changed to another class, and the indices of those."""
    random = np.random.default_rng(seed)
    indices = random.choice(len(labels), round(FLIPPED * len(labels)), replace=False)
    flipped = labels.copy()
    flipped[indices] = (flipped[indices] + random.integers(1, num_classes, len(indices))) % num_classes
    return flipped, indices


def measure(name: str, features: np.ndarray, labels: np.ndarray, num_seeds: int) -> float:
    """The mean share of the flipped labels that the first 10% listed hold."""
    shares = []
    for seed in range(num_seeds):
        flipped, indices = flip(labels, int(labels.max()) + 1, seed)
        probabilities = cross_validated_probabilities(features, flipped, seed=seed)
        listed = find_label_errors(flipped, probabilities)[: round(LISTED * len(labels))]
        shares.append(float(np.isin(indices, listed).mean()))
        accuracy = float((probabilities.argmax(axis=1) == labels).mean())
        right = float(np.isin(listed, indices).mean())
        print(
            f"{name}, seed {seed}: {shares[-1]:.3f} of {len(indices)} flipped labels among the {len(listed)} listed of "
            f"{len(labels):,} ({right:.0%} of these flipped); accuracy on the true labels {accuracy:.3f}",
            flush=True,
        )
    low, high = min(shares), max(shares)
    print(f"{name}: mean {np.mean(shares):.3f} ({low:.3f} to {high:.3f}) of {num_seeds} seeds, chance {LISTED}")
    return float(np.mean(shares))


def join(*datasets: ImageDataset) -> ImageDataset:
    images, labels = (np.concatenate([getattr(one, name) for one in datasets]) for name in ("images", "labels"))
    ids = tuple(id for one in datasets for id in one.ids)
    return ImageDataset(images=images, labels=labels, class_names=datasets[0].class_names, ids=ids)


def train_backbone(config: TrainConfig, train: ImageDataset, validation: ImageDataset) -> Classifier:
    network = build_network(config, train.class_names)
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"folder": Path(folder), "notify": lambda message: None, "log": lambda step, metrics: None}
        result = fit(network, train, validation, config, **quiet)
    accuracy = result.best_metrics["validation/accuracy"]
    print(f"backbone: {len(train):,} other images, {config.epochs} epochs, validation accuracy {accuracy:.3f}")
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="drawings of the flipped labels")
    parser.add_argument("--per-class", type=int, default=80, help="audited images of the sample, per class")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of the backbone")
    options = parser.parse_args()
    print(this_machine(), f"torch {torch.__version__}", flush=True)
    digits = join(*read_splits(resolve("digits")).datasets.values())
    measure("digits, pixels", thumbnails(digits.images, PIXELS), digits.labels, options.seeds)
    few = {"train_per_class": options.per_class, "validation_per_class": 160 - options.per_class, "test_per_class": 0}
    more = {"augmentation": "crop-flip", "epochs": options.epochs, "batch_size": 50, "image_size": 32}
    sample = os.environ["VITCIFAR_SAMPLE"]
    config = resolve("digits", data="folder", data_dir=sample, device="cpu", warmup_epochs=3.0, **few, **more)
    splits = read_splits(config)
    audited, others = splits.train, splits.validation
    network = train_backbone(config, others, splits.test)
    measure("sample, pixels", thumbnails(audited.images, PIXELS), audited.labels, options.seeds)
    features = predict_embeddings(network, audited.images)
    share = measure("sample, backbone", features, audited.labels, options.seeds)
    print(f"ratio {share / LISTED:.2f}")


if __name__ == "__main__":
    main()
