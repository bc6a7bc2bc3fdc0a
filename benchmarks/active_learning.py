"""Labelling the images that `vitcifar suggest` chooses, against as many chosen at random.

    VITCIFAR_SAMPLE=images python benchmarks/active_learning.py

The folder is one of CIFAR-10's images, `train/<class>/` and `test/<class>/`. A small network is trained once, on some
of the images; its embeddings of the others are what a version has of images that nobody labelled. Of those, a seed sets
test images apart. The head starts with the labels of a few random images and is fitted again after each batch that
is labelled, once with suggested and once with random images. A seed is the mean over several random starts, a side the
mean test accuracy over the batches. The last lines are the mean difference, with its 95% interval (Student's t over
the seeds), and the ratio of the accuracies.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t
from sklearn.linear_model import LogisticRegression

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.sources import open_source
from vitcifar.evaluation.active_learning import select_images
from vitcifar.inference.machine import this_machine
from vitcifar.model.network import build_network
from vitcifar.model.predict import predict_embeddings
from vitcifar.presets import resolve
from vitcifar.training.loop import fit

INVERSE_L2 = 0.01  # C of the head, as cross-validation chooses it on 50 to 200 of these images
Choice = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]


def read_sample(folder: Path) -> ImageDataset:
    """All images of the folder, of both its splits, in random order."""
    source = open_source("folder", folder)
    parts = [source.read(part, np.arange(len(source.labels(part)))) for part in ("train", "test")]
    images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    ids = tuple(id for part in parts for id in part.ids)
    whole = ImageDataset(images=images, labels=labels, class_names=source.class_names, ids=ids)
    return whole.subset(np.random.default_rng(0).permutation(len(whole)))


def take(labels: np.ndarray, first: int, end: int) -> np.ndarray:
    """The indices of the images `first` to `end` of each class."""
    return np.concatenate([np.flatnonzero(labels == label)[first:end] for label in np.unique(labels)])


def embed(dataset: ImageDataset, per_class: int, image_size: int, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings and labels of the images on which a network was not trained; a tenth of its own are validation."""
    given = {"augmentation": "crop-flip", "warmup_epochs": 3.0, "batch_size": 50, "device": "cpu", "analysis": "none"}
    config = resolve("digits", **given, image_size=image_size, epochs=epochs)
    network = build_network(config, dataset.class_names)
    num_train = per_class - per_class // 10
    train, validation = (
        dataset.subset(take(dataset.labels, *bounds)) for bounds in ((0, num_train), (num_train, per_class))
    )
    with tempfile.TemporaryDirectory() as folder:
        options = {"folder": Path(folder), "notify": lambda message: None}
        outcome = fit(network, train, validation, config, log=lambda step, metrics: None, **options)
    print(f"network: validation accuracy {outcome.best_metrics['validation/accuracy']:.3f}, {len(train):,} images")
    rest = dataset.subset(take(dataset.labels, per_class, len(dataset)))
    return predict_embeddings(network, rest.images), rest.labels


def at_random(probabilities: np.ndarray, embeddings: np.ndarray, num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(len(embeddings))[:num]


def suggested(probabilities: np.ndarray, embeddings: np.ndarray, num: int, seed: int) -> np.ndarray:
    return select_images(probabilities, embeddings, num, seed=seed)


def learn(
    choose: Choice,
    embeddings: np.ndarray,
    labels: np.ndarray,
    pool: np.ndarray,
    test: np.ndarray,
    seed: int,
    options: argparse.Namespace,
) -> list[float]:
    """The test accuracy with the first labels of the pool, and after each batch that was chosen and labelled."""
    known, accuracies = pool[: options.start], []
    for batch in range(options.batches + 1):
        head = LogisticRegression(C=INVERSE_L2, max_iter=1000).fit(embeddings[known], labels[known])
        accuracies.append(float(head.score(embeddings[test], labels[test])))
        rest = np.setdiff1d(pool, known)
        chosen = choose(head.predict_proba(embeddings[rest]), embeddings[rest], options.num, seed + batch)
        known = np.append(known, rest[chosen])
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=10, help="random first labels of each seed")
    parser.add_argument("--start", type=int, default=50, help="images that are labelled at the start")
    parser.add_argument("--num", type=int, default=50, help="images of a batch")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--test-per-class", type=int, default=40, help="test images, per class")
    parser.add_argument("--network-per-class", type=int, default=100, help="images of the network, per class")
    parser.add_argument("--image-size", type=int, default=64, help="input size of the network in pixels")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of the network")
    options = parser.parse_args()
    print(this_machine(), f"torch {torch.__version__}", flush=True)
    started = time.process_time()
    dataset = read_sample(Path(os.environ["VITCIFAR_SAMPLE"]))
    embeddings, labels = embed(dataset, options.network_per_class, options.image_size, options.epochs)
    print(f"{len(labels):,} images to label or test, {time.process_time() - started:.0f} s of CPU time", flush=True)
    differences, ratios = [], []
    for seed in range(options.seeds):
        random = np.random.default_rng(seed)
        order = random.permutation(len(labels))
        test = order[take(labels[order], 0, options.test_per_class)]
        sides: dict[str, list[list[float]]] = {"random": [], "suggested": []}
        for start in range(options.starts):
            pool = random.permutation(np.setdiff1d(order, test))
            for side, choose in (("random", at_random), ("suggested", suggested)):
                sides[side].append(learn(choose, embeddings, labels, pool, test, 10_000 * seed + 100 * start, options))
        curves = {side: np.mean(values, axis=0) for side, values in sides.items()}  # (batches + 1,)
        means = {side: curve[1:].mean() for side, curve in curves.items()}
        differences.append(means["suggested"] - means["random"])
        ratios.append(means["suggested"] / means["random"])
        text = "; ".join(f"{side} {' '.join(f'{value:.3f}' for value in curve)}" for side, curve in curves.items())
        print(f"seed {seed}: {text}; difference {differences[-1]:+.4f}", flush=True)
    half = t.ppf(0.975, options.seeds - 1) * np.std(differences, ddof=1) / options.seeds**0.5
    mean = float(np.mean(differences))
    verdict = "beats" if mean > 0 else "does not beat"
    print(f"{verdict} random choice: {mean:+.4f} (95% interval {mean - half:+.4f} to {mean + half:+.4f})")
    print(f"{time.process_time() - started:.0f} s of CPU time\nratio {np.mean(ratios):.3f}")


if __name__ == "__main__":
    main()
