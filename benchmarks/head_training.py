"""Training a head on a frozen ViT-B/16 at 224: the plain loop that courses teach against ours.

    python benchmarks/head_training.py

All sides in one run, on the same images, 10 epochs, with random weights (time does not depend on them). The plain
loop runs the backbone in every epoch, in fp32, on PIL images from a DataLoader; ours runs it once, and not at all with
its features on disk; lbfgs fits the head in one step. Then each trains a head on a small trained backbone, where the
accuracy means something. The last lines are plain time / our time.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.sources import open_source
from vitcifar.data.splits import make_splits
from vitcifar.data.torchvision_compat import torchvision
from vitcifar.inference.machine import this_machine
from vitcifar.model.network import MEAN, STD, Classifier, build_network
from vitcifar.presets import resolve
from vitcifar.training.feature_cache import FeatureCache
from vitcifar.training.head_solver import solve_head
from vitcifar.training.loop import fit

EPOCHS = 10
BATCH_SIZE = 16
LEARNING_RATE = 1e-3


class PilPictures(Dataset):
    """What a course's data set gives: a PIL image through torchvision's transforms, and its label."""

    def __init__(self, dataset: ImageDataset, image_size: int) -> None:
        self.dataset = dataset
        steps = [
            torchvision.transforms.Resize((image_size, image_size)),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(MEAN, STD),
        ]
        self.transform = torchvision.transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.dataset.images[index])), int(self.dataset.labels[index])


def plain_loop(network: Classifier, train: ImageDataset, validation: ImageDataset) -> float:
    """The loop of the courses; returns the best epoch's accuracy on validation."""
    model = nn.Sequential(network.backbone, network.head)
    for weight in network.backbone.parameters():
        weight.requires_grad = False
    loaders = [
        DataLoader(PilPictures(part, network.image_size), BATCH_SIZE, shuffle=part is train)
        for part in (train, validation)
    ]
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(network.head.parameters(), lr=LEARNING_RATE)
    best = 0.0
    for _ in range(EPOCHS):
        model.train()
        for pixels, labels in loaders[0]:
            optimizer.zero_grad()
            criterion(model(pixels), labels).backward()
            optimizer.step()
        model.eval()
        num_right = 0
        with torch.no_grad():
            for pixels, labels in loaders[1]:
                num_right += int((model(pixels).argmax(dim=1) == labels).sum())
        best = max(best, num_right / len(validation))
    return best


def our_loop(
    network: Classifier,
    train: ImageDataset,
    validation: ImageDataset,
    arch: str,
    cache: FeatureCache | None = None,
    solver: str = "minibatch",
) -> float:
    given = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "optimizer": "adam"}
    given |= {"schedule": "constant", "warmup_epochs": 0.0, "train_layers": "head", "weight_decay": 0.0}
    config = resolve("cifar10", arch=arch, weights="none", device="cpu", head_solver=solver, **given)
    learn = solve_head if solver == "lbfgs" else fit
    with tempfile.TemporaryDirectory() as folder:
        where = {"folder": Path(folder), "feature_cache": cache, "log": lambda step, metrics: None}
        outcome = learn(network, train, validation, config, **where)
    return outcome.best_metrics["validation/accuracy"]


def synthetic(num_images: int, seed: int) -> ImageDataset:
    """Noise of CIFAR-10's size and classes."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    names, ids = tuple("abcdefghij"), tuple(f"{seed}-{index}" for index in range(num_images))
    return ImageDataset(images=images, labels=np.arange(num_images) % 10, class_names=names, ids=ids)


def measure_time(num_train: int, num_validation: int, folder: Path) -> dict[str, float]:
    """How many times longer the plain loop takes than each of ours."""
    train, validation = synthetic(num_train, 0), synthetic(num_validation, 1)
    cache = FeatureCache(folder, 10**9)
    seconds = {}
    for side in ("ours", "ours, keeping its features", "ours, features on disk", "lbfgs, features on disk", "plain"):
        network = build_network(resolve("cifar10", weights="none"), train.class_names)
        start = time.perf_counter()
        if side == "plain":
            plain_loop(network, train, validation)
        else:
            kept = None if side == "ours" else cache
            our_loop(network, train, validation, "vit_b_16", kept, "lbfgs" if "lbfgs" in side else "minibatch")
        seconds[side] = time.perf_counter() - start
        print(f"{side:>26}: {seconds[side]:8.2f} s for {EPOCHS} epochs of {num_train} + {num_validation} images")
    return {side: seconds["plain"] / taken for side, taken in seconds.items() if side != "plain"}


def compare_accuracy(num_seeds: int) -> None:
    """A backbone trained on the digits 0 to 4; both loops train a head for 5 to 9 on it."""
    source = open_source("digits", Path("data"))
    splits = make_splits(source, train_per_class=60, validation_per_class=65, test_per_class=1, seed=0)
    known, new = (choose(splits.train, *digits) for digits in ((0, 5), (5, 10)))
    known_validation, new_validation = (choose(splits.validation, *digits) for digits in ((0, 5), (5, 10)))
    config = resolve("digits", epochs=12, device="cpu", promote_to="none")
    trained = build_network(config, known.class_names)
    with tempfile.TemporaryDirectory() as folder:
        fit(trained, known, known_validation, config, log=lambda step, metrics: None, folder=Path(folder))
    accuracies: dict[str, list[float]] = {"plain": [], "ours": [], "lbfgs": []}
    for seed in range(num_seeds):
        for side in accuracies:
            torch.manual_seed(seed)
            network = build_network(resolve("digits", seed=seed), new.class_names)
            network.backbone.load_state_dict(trained.backbone.state_dict())
            if side == "plain":
                accuracies[side].append(plain_loop(network, new, new_validation))
            else:
                solver = "lbfgs" if side == "lbfgs" else "minibatch"
                accuracies[side].append(our_loop(network, new, new_validation, "vit_tiny", solver=solver))
    for side, values in accuracies.items():
        print(
            f"{side:>6}: validation accuracy {np.mean(values):.4f} (mean of {num_seeds} seeds, small trained backbone)"
        )


def choose(dataset: ImageDataset, first: int, end: int) -> ImageDataset:
    """The images of some of the classes, as a set of its own."""
    part = dataset.subset(np.flatnonzero((dataset.labels >= first) & (dataset.labels < end)))
    names = dataset.class_names[first:end]
    return ImageDataset(images=part.images, labels=part.labels - first, class_names=names, ids=part.ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=40, help="training images")
    parser.add_argument("--validation", type=int, default=10, help="validation images")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the accuracy comparison")
    options = parser.parse_args()
    print(this_machine())
    compare_accuracy(options.seeds)
    with tempfile.TemporaryDirectory() as folder:
        for side, ratio in measure_time(options.train, options.validation, Path(folder)).items():
            print(f"ratio {ratio:.2f} ({side})")


if __name__ == "__main__":
    main()
