"""A student on few images, with a teacher that saw more of them, against the same training without a teacher.

    VITCIFAR_SAMPLE=images python benchmarks/distillation.py

The folder is one of CIFAR-10's images, `train/<class>/` and `test/<class>/`. The teacher trains once, on most training
images; students train on the first few of the same, in turns with and without it, with one seed each. What is compared
is the accuracy of the best epoch on validation, measured once on the test split. The last line is the mean difference,
with its 95% interval (Student's t over the seeds' differences).
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits, read_splits
from vitcifar.data.torchvision_compat import torchvision
from vitcifar.inference.machine import this_machine
from vitcifar.model.network import Classifier, build_network
from vitcifar.model.predict import predict_logits
from vitcifar.presets import resolve
from vitcifar.training.loop import fit

GIVEN = {
    "data": "folder",
    "test_per_class": 0,
    "augmentation": "crop-flip",
    "warmup_epochs": 3.0,
    "device": "cpu",
    "analysis": "none",
}


def train(config: TrainConfig, splits: Splits, teacher: Classifier | None = None) -> tuple[Classifier, float]:
    """The network of the best epoch, and its accuracy on the test split."""
    network = build_network(config, splits.class_names)
    with tempfile.TemporaryDirectory() as folder:
        options = {"folder": Path(folder), "notify": lambda message: None, "teacher": teacher}
        fit(network, splits.train, splits.validation, config, log=lambda step, metrics: None, **options)
    logits = predict_logits(network, splits.test.images, config.batch_size)
    return network, float((logits.argmax(axis=1) == splits.test.labels).mean())


def interval(values: Sequence[float]) -> str:
    """The mean with its 95% interval (Student's t)."""
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):+.3f} (95% interval {np.mean(values) - half:+.3f} to {np.mean(values) + half:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="students of each side")
    parser.add_argument("--teacher-per-class", type=int, default=130, help="training images of the teacher, per class")
    parser.add_argument("--teacher-epochs", type=int, default=40)
    parser.add_argument("--teacher-image-size", type=int, default=32, help="input size of the teacher in pixels")
    parser.add_argument("--per-class", type=int, default=20, help="training images of a student, per class")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of a student")
    parser.add_argument("--temperature", type=float, default=TrainConfig.distillation_temperature)
    parser.add_argument("--weight", type=float, default=TrainConfig.distillation_weight)
    options = parser.parse_args()
    given = {**GIVEN, "data_dir": os.environ["VITCIFAR_SAMPLE"]}
    print(this_machine(), f"torch {torch.__version__}, torchvision {torchvision.__version__}", flush=True)
    started = time.perf_counter()
    many = {"train_per_class": options.teacher_per_class, "image_size": options.teacher_image_size}
    config = resolve("digits", **given, **many, batch_size=50, epochs=options.teacher_epochs)
    splits = read_splits(config)
    teacher, accuracy = train(config, splits)
    print(
        f"teacher: test accuracy {accuracy:.3f}, {len(splits.train):,} training images of {config.image_size} pixels, "
        f"{time.perf_counter() - started:.0f} s",
        flush=True,
    )
    few = {"train_per_class": options.per_class, "epochs": options.epochs}
    few |= {"distillation_temperature": options.temperature, "distillation_weight": options.weight}
    accuracies: dict[str, list[float]] = {"without teacher": [], "with teacher": []}
    for seed in range(options.seeds):
        for side, measured in accuracies.items():
            taught = {"teacher": "models:/vitcifar/1"} if side == "with teacher" else {}
            config = resolve("digits", **given, **few, **taught, seed=seed)
            splits = read_splits(config)
            measured.append(train(config, splits, teacher if taught else None)[1])
            print(f"seed {seed}, {side}: {measured[-1]:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    for side, values in accuracies.items():
        print(f"{side}: {interval(values)}, {len(splits.train)} training images, {options.epochs} epochs")
    print(f"difference {interval(np.subtract(accuracies['with teacher'], accuracies['without teacher']))}")


if __name__ == "__main__":
    main()
