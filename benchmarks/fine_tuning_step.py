"""A full fine-tuning step of ViT-B/16 at 224: ours, with all tracking on, against a bare PyTorch loop.

    python benchmarks/fine_tuning_step.py

The steps take turns in one run, so that whatever else the machine does falls on both: a step of ours (its value written
to MLflow and TensorBoard), then the bare loop's in the same precision on a network of its own, and now and then one in
fp32. Medians. The line before the last is fp32 time / bf16 time, the last one our time / bare time.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from vitcifar import tracking
from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.inference.machine import this_machine
from vitcifar.model.network import build_network
from vitcifar.training.distributed import autocast, choose_precision
from vitcifar.training.loop import fit

CPU = torch.device("cpu")


class Enough(Exception):
    """Ends our loop when all turns are taken."""


def synthetic(num_images: int, seed: int) -> ImageDataset:
    """Noise of CIFAR-10's size and classes."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    names, ids = tuple("abcdefghij"), tuple(f"{seed}-{index}" for index in range(num_images))
    return ImageDataset(images=images, labels=np.arange(num_images) % 10, class_names=names, ids=ids)


def bare_step(config: TrainConfig, dataset: ImageDataset) -> Callable[[str], None]:
    """A step as one writes it by hand: forward in a precision, loss, backward, Adam."""
    network = build_network(config, dataset.class_names)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
    images = torch.from_numpy(dataset.images[: config.batch_size])
    labels = torch.from_numpy(dataset.labels[: config.batch_size])

    def step(precision: str) -> None:
        with autocast(CPU, precision):
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(config: TrainConfig, num_turns: int, log: Callable[[int, Mapping[str, float]], object]) -> dict[str, list]:
    """Seconds of every turn, by side."""
    train, validation = synthetic(config.batch_size * (num_turns + 2), 0), synthetic(config.batch_size, 1)
    precision = choose_precision(config, CPU, hidden_size=768)
    step = bare_step(config, train)
    seconds: dict[str, list[float]] = {"ours": [], "bare": [], "fp32": []}
    started = 0.0

    def turn(number: int, metrics: Mapping[str, float]) -> None:
        nonlocal started
        log(number, metrics)
        now = time.perf_counter()
        if number > 1:  # the first step warms up
            seconds["ours"].append(now - started)
        for side, used in (("bare", precision), ("fp32", "fp32")):
            if side == "fp32" and number % 4:
                continue
            before = time.perf_counter()
            step(used)
            if number > 1:
                seconds[side].append(time.perf_counter() - before)
        if number > num_turns:
            raise Enough
        started = time.perf_counter()

    network = build_network(config, train.class_names)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        fit(network, train, validation, config, log=turn, folder=Path(folder))
    print(f"{config.arch}, {config.batch_size} images a step, {precision}, {num_turns} turns")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    print(this_machine())
    config = TrainConfig(weights="none", train_layers="all", batch_size=options.batch_size, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        tracking.connect(None)
        with tracking.start_run(experiment="benchmark", output_dir=Path("runs")) as run:
            seconds = measure(config, options.turns, run.log)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    for side, median in medians.items():
        print(f"{side:>5}: {median:7.3f} s a step, {options.batch_size / median:6.2f} images a second")
    print(f"fp32 / bf16 {medians['fp32'] / medians['bare']:.2f}")
    print(f"ratio {medians['ours'] / medians['bare']:.3f}")


if __name__ == "__main__":
    main()
