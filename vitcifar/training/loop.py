"""The training loop, top to bottom: epoch, batch, forward, loss, backward, step, log, validate, keep the best.

Every random number is a function of the seed, the epoch and the picture, never of what was drawn before: a run that
was killed and resumed, and one that was not, go through the same numbers.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from vitcifar.config import TrainConfig
from vitcifar.data.pictures import Pictures
from vitcifar.errors import ConfigError, TrainingError
from vitcifar.training import checkpoint
from vitcifar.training.network import Classifier, count_parameters
from vitcifar.training.optimizer import build_optimizer
from vitcifar.training.predict import take
from vitcifar.training.schedule import learning_rate

Log = Callable[[int, Mapping[str, float]], Any]

# Settings that may differ between a run and its continuation: they change no weight.
FREE_ON_RESUME = ("data_dir", "resume", "experiment", "run_name", "output_dir", "model_name", "promote_to")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of training: the epoch (from 1) whose weights the network now has, and how it did."""

    best_epoch: int
    best_metrics: Mapping[str, float]
    num_epochs: int
    num_steps: int
    num_trained_parameters: int


def fit(
    network: Classifier,
    train: Pictures,
    validation: Pictures,
    config: TrainConfig,
    *,
    log: Log,
    folder: Path,
    resume: Path | None = None,
) -> Outcome:
    """Train the network in place and leave it with the weights of its best epoch on validation.

    Every epoch leaves a checkpoint in `folder`; `resume` is such a checkpoint to go on from. Raises TrainingError at
    the first loss that is not finite, and for a checkpoint that belongs to other settings, weights or pictures.
    """
    device = choose_device(config.device)
    network.to(device).train()
    optimizer = build_optimizer(network, config)
    num_batches = math.ceil(len(train) / config.batch_size)
    num_steps = config.epochs * num_batches
    warmup_steps = round(config.warmup_epochs * num_batches)
    identity = describe(network, train, config)
    first_epoch, step = 1, 0
    best: dict[str, Any] = {"epoch": 0, "accuracy": -1.0, "loss": math.inf}
    if resume is not None:
        state = load_matching(resume, identity)
        first_epoch, step, best = state["epoch"] + 1, state["step"], state["best"]
        network.load_state_dict(state["weights"], strict=False)
        optimizer.load_state_dict(state["optimizer"])

    bar = tqdm(total=num_steps, initial=step, desc="training", unit="step", disable=None)
    for epoch in range(first_epoch, config.epochs + 1):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
        loss_sum, num_right = 0.0, 0
        for start in range(0, len(order), config.batch_size):
            chosen = order[start : start + config.batch_size]
            images = take(train.images, chosen, device)  # uint8 (B, H, W, 3)
            labels = torch.from_numpy(train.labels[chosen]).to(device)
            rate = learning_rate(
                step,
                num_steps=num_steps,
                warmup_steps=warmup_steps,
                peak=config.learning_rate,
                schedule=config.schedule,
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            logits = network(images)  # (B, K)
            loss = functional.cross_entropy(logits, labels)
            must_be_finite("step/loss", loss.item(), step + 1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            loss_sum += loss.item() * len(chosen)
            num_right += int((logits.argmax(dim=1) == labels).sum())
            log(step, {"step/loss": loss.item(), "step/learning_rate": rate})
            bar.update()

        metrics = {"train/loss": loss_sum / len(train), "train/accuracy": num_right / len(train)}
        loss_value, accuracy = validate(network, validation, config.batch_size)
        must_be_finite("validation/loss", loss_value, step)
        metrics |= {"validation/loss": loss_value, "validation/accuracy": accuracy, "learning_rate": rate}
        log(step, metrics)
        bar.set_postfix(epoch=epoch, loss=f"{loss_value:.3f}", accuracy=f"{accuracy:.3f}")
        weights = trained_weights(network)
        if (accuracy, -loss_value) > (best["accuracy"], -best["loss"]):
            best = {"epoch": epoch, "accuracy": accuracy, "loss": loss_value, "metrics": metrics}
            checkpoint.save({"identity": identity, "epoch": epoch, "weights": weights}, folder / checkpoint.BEST)
        state = {"identity": identity, "epoch": epoch, "step": step, "best": best, "weights": weights}
        checkpoint.save({**state, "optimizer": optimizer.state_dict()}, folder / checkpoint.LAST)
    bar.close()

    restored = load_matching(folder / checkpoint.BEST, identity)
    network.load_state_dict(restored["weights"], strict=False)
    network.eval()
    return Outcome(
        best_epoch=best["epoch"],
        best_metrics=best["metrics"],
        num_epochs=config.epochs,
        num_steps=step,
        num_trained_parameters=count_parameters(network, trained=True),
    )


def validate(network: Classifier, pictures: Pictures, batch_size: int) -> tuple[float, float]:
    """Loss and accuracy, counted over pictures."""
    device = network.head.weight.device
    loss_sum, num_right = 0.0, 0
    network.eval()
    with torch.no_grad():
        for start in range(0, len(pictures), batch_size):
            chosen = np.arange(start, min(start + batch_size, len(pictures)))
            labels = torch.from_numpy(pictures.labels[chosen]).to(device)
            logits = network(take(pictures.images, chosen, device))
            loss_sum += functional.cross_entropy(logits, labels, reduction="sum").item()
            num_right += int((logits.argmax(dim=1) == labels).sum())
    network.train()
    return loss_sum / len(pictures), num_right / len(pictures)


def must_be_finite(metric: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"{metric} became {value} at step {step}, and training stopped before the weights took it in: "
            "type a lower --learning-rate or a longer --warmup-epochs."
        )


def choose_device(name: str) -> torch.device:
    """auto = the first GPU when there is one; raises ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but no GPU can be used here: type --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def trained_weights(network: Classifier) -> dict[str, Tensor]:
    """Only what training changes: frozen weights come from where training started."""
    return {name: weight.detach() for name, weight in network.named_parameters() if weight.requires_grad}


def describe(network: Classifier, train: Pictures, config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint belongs to: settings, classes, pictures and frozen weights."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE_ON_RESUME}
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict(keep_vars=True).items()):
        if not weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    pictures = hashlib.sha256("\n".join(train.ids).encode()).hexdigest()
    classes = list(network.class_names)
    return {"settings": settings, "classes": classes, "pictures": pictures, "frozen weights": digest.hexdigest()}


def load_matching(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint that belongs to this identity; raises TrainingError with what differs."""
    state = checkpoint.load(path)
    was = state.get("identity", {})
    for name, value in identity["settings"].items():
        got = was.get("settings", {}).get(name)
        if got != value:
            raise TrainingError(f"The checkpoint {path} was made with {name} {got!r}, not {value!r}: type that value.")
    for name in ("classes", "pictures", "frozen weights"):
        if was.get(name) != identity[name]:
            raise TrainingError(f"The checkpoint {path} was made with other {name}: train without --resume.")
    return state
