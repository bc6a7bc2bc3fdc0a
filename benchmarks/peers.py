"""Steps per second of full fine-tuning: ours against Hugging Face's Trainer and timm's loop, on one model and images.

    pip install timm transformers accelerate
    python benchmarks/peers.py

The same torchvision ViT (vit_tiny by default, `--arch vit_b_16` for the large one), uint8 images in memory, fp32,
AdamW, one step a batch; each side prepares images and logs in its own way: the Trainer through its data collator,
timm through its task of loss and optimizer as its train.py writes it. Sides that are not installed are left out, and
said. The sides take turns. The last line is our steps per second / the fastest peer's.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitcifar.data.dataset import ImageDataset
from vitcifar.inference.machine import this_machine
from vitcifar.model.network import Classifier, build_network
from vitcifar.presets import resolve
from vitcifar.training.loop import fit

NAMES = tuple("abcdefghij")
LEARNING_RATE = 1e-4


def synthetic(num_images: int) -> ImageDataset:
    """Noise of CIFAR-10's size and classes."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    ids = tuple(map(str, range(num_images)))
    return ImageDataset(images=images, labels=np.arange(num_images) % 10, class_names=NAMES, ids=ids)


def new_network(arch: str) -> Classifier:
    return build_network(resolve("cifar10", arch=arch, weights="none", train_layers="all"), NAMES)


def ours(arch: str, dataset: ImageDataset, batch_size: int) -> float:
    """Seconds for one epoch, from the first step on."""
    config = resolve(
        "cifar10",
        arch=arch,
        weights="none",
        train_layers="all",
        epochs=1,
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        optimizer="adamw",
        precision="fp32",
        device="cpu",
    )
    times: list[float] = []

    def log(step: int, metrics: Mapping[str, float]) -> None:
        if "step/loss" in metrics:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        fit(new_network(arch), dataset, dataset.subset(range(10)), config, log=log, folder=Path(folder))
    return times[-1] - times[0]


def trainer(arch: str, dataset: ImageDataset, batch_size: int) -> float:
    """The Trainer of transformers with its own defaults, apart from what the sides share."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class WithLoss(nn.Module):
        """The Trainer wants the loss from the model."""

        def __init__(self) -> None:
            super().__init__()
            self.network = new_network(arch)

        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.network(images)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    rows = [
        {"images": torch.from_numpy(image), "labels": int(label)}
        for image, label in zip(dataset.images, dataset.labels, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            learning_rate=LEARNING_RATE,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints every step
            Trainer(WithLoss(), arguments, train_dataset=rows, callbacks=[clock]).train()  # type: ignore[arg-type]
    return clock.times[-1] - clock.times[0]


def timm_loop(arch: str, dataset: ImageDataset, batch_size: int) -> float:
    """The step of timm's train.py: its optimizer factory, its meters, loss, backward, step."""
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter

    network = new_network(arch).train()
    optimizer = create_optimizer_v2(network, opt="adamw", lr=LEARNING_RATE, weight_decay=0.0)
    criterion, meter = nn.CrossEntropyLoss(), AverageMeter()
    data = torch.utils.data.TensorDataset(torch.from_numpy(dataset.images), torch.from_numpy(dataset.labels))
    times: list[float] = []
    for images, labels in torch.utils.data.DataLoader(data, batch_size, shuffle=True):
        loss = criterion(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        meter.update(loss.item(), len(images))
        times.append(time.perf_counter())
    return times[-1] - times[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="vit_tiny", choices=("vit_tiny", "vit_b_16"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    print(this_machine())
    sides: dict[str, Callable[[str, ImageDataset, int], float]] = {"ours": ours}
    for name, packages, side in (
        ("Trainer", ("transformers", "accelerate"), trainer),
        ("timm", ("timm",), timm_loop),
    ):
        if all(map(importlib.util.find_spec, packages)):
            sides[name] = side
        else:
            print(f"{name} is left out: pip install {' '.join(packages)}")
    dataset = synthetic(options.steps * options.batch_size)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _, (name, side) in itertools.product(range(options.turns), sides.items()):
        rates[name].append((options.steps - 1) / side(options.arch, dataset, options.batch_size))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        print(f"{name:>8}: {rate:7.2f} steps a second")
    if len(medians) > 1:
        print(f"ratio {medians['ours'] / max(rate for name, rate in medians.items() if name != 'ours'):.2f}")


if __name__ == "__main__":
    main()
