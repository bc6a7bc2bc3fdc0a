"""The training loop, top to bottom: epoch, batch, forward, loss, backward, step, log, validate, keep the best.

Every random number is a function of the seed, the epoch and the image, never of earlier draws. So a run that was
killed and resumed equals an uninterrupted one bit for bit, with any number of DataLoader workers.
Letters in the shapes: B images of a micro-batch, S the network's input size, K classes."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitcifar import progress
from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import TrainingError
from vitcifar.model.lora import merge_lora
from vitcifar.model.network import Classifier, Images
from vitcifar.training.batches import Batch, plan_epoch, sample_mix
from vitcifar.training.checkpoint import BEST
from vitcifar.training.distillation import distillation_loss
from vitcifar.training.distributed import (
    autocast,
    barrier,
    num_processes,
    peak_memory,
    rank,
    sum_gradients,
    sum_over_processes,
)
from vitcifar.training.feature_cache import FeatureCache
from vitcifar.training.loader import supervised
from vitcifar.training.stages import (
    ActiveStage,
    Inputs,
    Log,
    LogHistograms,
    Setup,
    begin_stage,
    prepare,
    rates_by_layer,
)
from vitcifar.training.state import TrainState, adopt_best, load_best, save_last, saved_when_stopped

BAR = "{desc} {bar} {percentage:.0f}%, {rate_noinv_fmt}, {remaining} left{postfix}"
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The best epoch (from 1), whose weights the network has after training, with its metrics, and counts."""

    best_epoch: int
    best_metrics: Mapping[str, float]
    num_epochs: int
    num_steps: int
    num_trained_parameters: int
    method: str = ""  # how the weights were made, in a sentence, unless they are those of an epoch
    options: str = ""  # of the command, besides the config

    @property
    def best_step(self) -> int:
        """The step at which the metrics of the best epoch were logged."""
        return self.num_steps // self.num_epochs * self.best_epoch


def fit(
    network: Classifier,
    train: ImageDataset,
    validation: ImageDataset,
    config: TrainConfig,
    *,
    log: Log,
    log_histograms: LogHistograms = lambda step, tensors: None,
    folder: Path,
    resume: Path | None = None,
    notify: Callable[[str], object] = progress.notify,
    teacher: Classifier | None = None,
    feature_cache: FeatureCache | None = None,
) -> TrainResult:
    """Train the network in place and leave it with the weights of its best epoch on validation.

    Every epoch writes a checkpoint to `folder` after its metrics were logged, and the head's weights and gradients as
    histograms; a signal that stops training amid an epoch writes one, too. `resume` is a checkpoint to continue from.
    `notify` receives messages about behaviour that may surprise. `teacher` is a trained network of the same classes to
    learn from; `feature_cache` shares frozen features with runs. Inside `distributed.process_group()` the processes
    share every batch, and rank 0 logs and writes. Raises TrainingError at the first loss that is not finite, and for a
    checkpoint of other settings, weights or images.
    """
    setup, stages, saved = prepare(
        network, train, validation, config, log, log_histograms, notify, folder, resume, teacher, feature_cache
    )
    state = TrainState.restore(saved, resume or folder, setup.num_batches)
    if resume is not None and (state.epoch or (folder / BEST).exists()):
        adopt_best(setup.checkpoints, state, folder / BEST)
    num_epochs, disable = sum(stage.num_epochs for stage in stages), None if rank() == 0 else True
    done = min(config.batch_size * (state.step - state.epoch * setup.num_batches), len(train))
    images = {"total": len(train) * num_epochs, "initial": len(train) * state.epoch + done}
    with supervised(), progress.bar(None, "Training", "images", bar_format=BAR, disable=disable, **images) as bar:
        while state.stage < len(stages):
            stage = stages[state.stage]
            if not state.finished(stage, config.patience):
                active = begin_stage(setup, stage, state, saved)
                while not state.finished(stage, config.patience):
                    bar.set_description_str(f"Epoch {state.epoch + 1}/{num_epochs}")
                    with saved_when_stopped(setup, active, state):
                        metrics = train_epoch(setup, active, state, bar)
                        end_epoch(setup, active, state, metrics)
            state.stage, state.stage_epoch, state.stage_step = state.stage + 1, 0, 0
    return finish(setup, state)


def finish(setup: Setup, state: TrainState) -> TrainResult:
    """Leave the network with its best weights, and describe the training."""
    network, checkpoints = setup.network, setup.checkpoints
    barrier()  # rank 0 has written the best weights
    network.load_state_dict(load_best(checkpoints, state, checkpoints.folder / BEST)["weights"], strict=False)
    merge_lora(network.blocks)
    network.eval()
    return TrainResult(
        best_epoch=state.best_epoch,
        best_metrics=state.best_metrics,
        num_epochs=state.epoch,
        num_steps=state.step,
        num_trained_parameters=sum(weight.numel() for weight in checkpoints.weights.values()),
    )


def train_epoch(setup: Setup, stage: ActiveStage, state: TrainState, bar: Any) -> dict[str, float]:
    """Train on every image once, one step for each batch; returns the epoch's training metrics.

    Of an epoch that was stopped, the steps that a checkpoint has are not repeated.
    """
    config, epoch = setup.config, state.epoch + 1
    batches = plan_epoch(len(setup.train), config, epoch, rank=rank(), num_processes=num_processes())
    batches = batches[state.step - state.epoch * setup.num_batches :]
    mixes = bool(config.mixup or config.cutmix)  # then a request is the images followed by their partners
    requests = [
        (epoch, np.concatenate(micro_batch) if mixes else micro_batch[0])
        for batch in batches
        for micro_batch in batch.micro_batches
    ]
    loaded = stage.inputs.train(requests)
    started = time.perf_counter()
    setup.network.train()
    for batch in batches:
        loss = train_step(setup, stage, state, batch, loaded)
        bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        bar.update(batch.size)
    # Sums over images, not means over batches: the last batch may be smaller.
    num_images, seconds = len(setup.train), time.perf_counter() - started
    metrics = {
        "train/loss": state.loss_sum / num_images,
        "train/accuracy": state.num_correct / num_images,
        "train/learning_rate": stage.schedule(state.stage_step - 1),
        **rates_by_layer(stage.optimizer, config, len(setup.network.blocks)),
        "system/peak_memory_megabytes": peak_memory(setup.device) / 1e6,
    }
    if batches:
        metrics["system/images_per_second"] = sum(batch.size for batch in batches) / seconds
    return metrics


def train_step(setup: Setup, stage: ActiveStage, state: TrainState, batch: Batch, loaded: Iterator[Images]) -> float:
    """One optimizer step, logged; returns the mean loss of the batch."""
    config, rate = setup.config, stage.schedule(state.stage_step)
    for group in stage.optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    sums = torch.zeros(2, device=setup.device)  # losses, correct predictions
    stage.optimizer.zero_grad(set_to_none=True)
    # One mix for the batch, not for each micro-batch or process: the result does not depend on how it is split.
    mix = sample_mix(config, (config.seed, state.epoch + 1, state.step, 1), setup.network.image_size)
    for indices, partners in batch.micro_batches:
        labels = setup.labels[indices]  # (B,)
        images = next(loaded)
        inputs = stage.inputs.preprocess(images)  # (B, 3, S, S), or cached features; with a mix 2 B
        if mix:
            inputs = mix(*inputs.chunk(2))
        with autocast(setup.device, setup.precision):
            logits = stage.inputs.classify(inputs).float()  # (B, K)
        loss = sum_of_losses(logits, labels, config.label_smoothing)
        if mix:
            partner_loss = sum_of_losses(logits, setup.labels[partners], config.label_smoothing)
            loss = mix.weight * loss + (1 - mix.weight) * partner_loss
        if stage.inputs.teacher:
            targets = stage.inputs.teacher(images, (state.epoch + 1, indices), mix)  # (B, K)
            taught = distillation_loss(logits, targets, config.distillation_temperature)
            loss = torch.lerp(loss, taught, config.distillation_weight)
        torch.autograd.backward(stage.scaler.scale(loss / batch.size))
        sums += torch.stack([loss.detach(), (logits.argmax(dim=1) == labels).sum()])
    sum_gradients(stage.weights.values())
    loss_sum, num_correct = sum_over_processes(sums).tolist()
    mean_loss = float(loss_sum) / batch.size
    metrics = {"step/loss": mean_loss, "step/learning_rate": rate}
    require_finite("step/loss", mean_loss, state.step + 1)  # before the weights take in a NaN
    with state.change():
        gradient_norm = update_weights(stage, config.clip_norm)
        if math.isfinite(gradient_norm):  # with fp16 the scaler skips a step whose gradients overflow
            metrics["step/gradient_norm"] = gradient_norm
        state.step += 1
        state.stage_step += 1
        state.loss_sum += loss_sum
        state.num_correct += num_correct
        setup.log(state.step, metrics)
    return mean_loss


def update_weights(stage: ActiveStage, clip_norm: float) -> float:
    """Clip the gradients, step the optimizer, and update the EMA; returns the gradient norm before clipping."""
    stage.scaler.unscale_(stage.optimizer)  # as its step would do
    gradients = [weight.grad for weight in stage.weights.values() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm:
        torch.nn.utils.clip_grads_with_norm_(stage.weights.values(), clip_norm, norm)
    stage.scaler.step(stage.optimizer)
    stage.scaler.update()
    if stage.ema:
        stage.ema.update(stage.weights)
    return float(norm)


def end_epoch(setup: Setup, stage: ActiveStage, state: TrainState, metrics: dict[str, float]) -> None:
    """Validate, keep the best weights, log, and write a checkpoint."""
    metrics |= validate(setup, stage.inputs)
    require_finite("validation/loss", metrics["validation/loss"], state.step)
    averaged: dict[str, float] = {}
    if stage.ema:
        with stage.ema.swapped_into(stage.weights):
            averaged = validate(setup, stage.inputs)
    with state.change():
        state.epoch += 1
        state.stage_epoch += 1
        state.loss_sum = state.num_correct = 0.0
        keep_best(setup, state, metrics)
        if stage.ema:
            with stage.ema.swapped_into(stage.weights):
                keep_best(setup, state, metrics | averaged)
            metrics |= {name.replace("/", "/ema_"): value for name, value in averaged.items()}
        if rank() == 0:
            progress.notify(describe_epoch(state, metrics))
        setup.log(state.step, {**metrics, "validation/best_accuracy": state.best_metrics["validation/accuracy"]})
        setup.log_histograms(state.step, head_histograms(stage))
        save_last(setup, stage, state)


def describe_epoch(state: TrainState, metrics: Mapping[str, float]) -> str:
    """The line of an epoch that stays above the bar, and in a log file."""
    train, val = (f"{metrics[f'{split}/loss']:.3f} acc {metrics[f'{split}/accuracy']:.3f}" for split in SPLITS)
    return f"Epoch {state.epoch}: train loss {train}, val loss {val}{', the best' * (state.best_epoch == state.epoch)}"


def head_histograms(stage: ActiveStage) -> dict[str, Tensor]:
    """The weights of the head, and their gradients in the epoch's last step."""
    head = {name: weight for name, weight in stage.weights.items() if name.startswith("head.")}
    gradients = {f"{name}.gradient": weight.grad for name, weight in head.items() if weight.grad is not None}
    return {name.replace(".", "/", 1): values for name, values in {**head, **gradients}.items()}


@torch.no_grad()
def validate(setup: Setup, inputs: Inputs) -> dict[str, float]:
    """Validation loss and accuracy, means over images; the processes share the work."""
    labels, batch_size = setup.validation.labels, setup.config.batch_size
    own = np.arange(len(labels))[rank() :: num_processes()]
    requests = [(1, own[start : start + batch_size]) for start in range(0, len(own), batch_size)]
    sums = torch.zeros(2, dtype=torch.float64, device=setup.device)  # losses, correct predictions
    setup.network.eval()
    for (_, indices), images in zip(requests, inputs.validation(requests), strict=True):
        expected = torch.from_numpy(labels[indices]).to(setup.device)  # (B,)
        with autocast(setup.device, setup.precision):
            logits = inputs.classify(inputs.preprocess(images)).float()  # (B, K)
        sums += torch.stack([sum_of_losses(logits, expected, 0.0), (logits.argmax(dim=1) == expected).sum()])
    loss, num_correct = sum_over_processes(sums).tolist()
    return {"validation/loss": loss / len(labels), "validation/accuracy": num_correct / len(labels)}


def keep_best(setup: Setup, state: TrainState, metrics: Mapping[str, float]) -> None:
    """Save the weights if validation accuracy is higher than ever or, at equal accuracy, the loss is lower."""
    accuracy, loss, best = "validation/accuracy", "validation/loss", state.best_metrics
    if not best or (metrics[accuracy], -metrics[loss]) > (best[accuracy], -best[loss]):
        state.best_epoch = state.epoch
        state.best_metrics = {name: value for name, value in metrics.items() if not name.startswith("system/")}
        setup.checkpoints.save(BEST, epoch=state.epoch, metrics=state.best_metrics)


def sum_of_losses(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")


def require_finite(metric: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"{metric} became {value} at step {step}, and training stopped there: type a lower --learning-rate, "
            "a longer --warmup-epochs, or --clip-norm 1."
        )
