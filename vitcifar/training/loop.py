"""The training loop, top to bottom: epoch, batch, forward, loss, backward, step, log, validate, keep the best.

Every random number is a function of the seed, the epoch and the image, never of what was drawn before. So a run
that was killed and resumed goes through the same numbers as one that was not, with any number of workers.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import TrainingError
from vitcifar.model.lora import add_lora, merge_lora
from vitcifar.model.network import Classifier, frozen_depth
from vitcifar.training import checkpoint
from vitcifar.training.augmentation import sample_mix
from vitcifar.training.batches import Loader, plan_epoch
from vitcifar.training.checkpoint import identity_of, load_compatible
from vitcifar.training.distributed import barrier, num_processes, rank, sum_gradients, sum_over_processes
from vitcifar.training.feature_cache import Inputs, prepare_inputs
from vitcifar.training.optimizer import EMA, build_optimizer, learning_rate, set_learning_rate
from vitcifar.training.precision import autocast, choose_device, choose_precision
from vitcifar.training.stages import TrainState, enter_stage, plan_stages

Log = Callable[[int, Mapping[str, float]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came out of training: the epoch (from 1) whose weights the network now has, and how it did."""

    best_epoch: int
    best_metrics: Mapping[str, float]
    num_epochs: int
    num_steps: int
    num_trained_parameters: int


def notify_on_stderr(sentence: str) -> None:
    tqdm.write(sentence, file=sys.stderr)


def fit(
    network: Classifier,
    train: ImageDataset,
    validation: ImageDataset,
    config: TrainConfig,
    *,
    log: Log,
    folder: Path,
    resume: Path | None = None,
    notify: Callable[[str], Any] = notify_on_stderr,
) -> TrainResult:
    """Train the network in place and leave it with the weights of its best epoch on validation.

    Every epoch leaves a checkpoint in `folder`, after all its values were logged; `resume` is such a checkpoint to go
    on from. `say` hears, in a sentence, what is done in another way than one may think. Started by torchrun, inside
    `processes.together()`, the processes share every batch, and the first one logs and writes. Raises TrainingError
    at the first loss that is not finite, and for a checkpoint of other settings, weights or images.
    """
    is_first = rank() == 0
    notify = notify if is_first else lambda sentence: None
    device = choose_device(config.device)
    precision = choose_precision(config, device, network.backbone.hidden_dim)
    network.to(device)
    stages = plan_stages(config)
    if config.lora_rank:
        add_lora(network.blocks[frozen_depth(network, config.train_layers) or 0 :], config.lora_rank, config.seed)
    changed = enter_stage(network, stages[-1], config.lora_rank)  # the last stage trains what any stage trains
    identity = identity_of(network, changed, train, config)
    position = TrainState(num_trained_parameters=sum(weight.numel() for weight in changed.values()))
    resumed: dict[str, Any] = {}
    if resume is not None:
        resumed = load_compatible(resume, identity)
        position = TrainState(**resumed["position"])
        network.load_state_dict(resumed["weights"], strict=False)
    elif is_first:
        checkpoint.save(
            {"identity": identity, "position": position.state_dict(), "weights": {}}, folder / checkpoint.LAST
        )

    mixing = bool(config.mixup or config.cutmix)
    num_batches = math.ceil(len(train) / config.batch_size)
    labels_on_device = torch.from_numpy(train.labels).to(device)
    bar = tqdm(
        total=num_batches * sum(stage.num_epochs for stage in stages),
        initial=position.step,
        desc="training",
        unit="step",
        disable=None if is_first else True,
    )
    while position.stage < len(stages):
        stage = stages[position.stage]
        if position.finished(stage, config.patience):
            position.next_stage()
            continue
        weights = enter_stage(network, stage, config.lora_rank)
        optimizer = build_optimizer(weights, config, len(network.blocks))
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        average = EMA(weights, config.ema_decay) if config.ema_decay else None
        if position.stage_epoch:
            optimizer.load_state_dict(resumed["optimizer"])
            scaler.load_state_dict(resumed["scaler"])
            if average:
                average.load_state_dict(resumed["average"])
        feed = prepare_inputs(
            network, train, validation, config, stage.train_layers, precision=precision, notify=notify
        )

        while not position.finished(stage, config.patience):
            epoch = position.epoch + 1
            batches = plan_epoch(
                len(train),
                batch_size=config.batch_size,
                num_parts=config.accumulation_steps,
                key=(config.seed, epoch),
                rank=rank(),
                num_processes=num_processes(),
            )
            parts = [pair for batch in batches for pair in zip(batch.parts, batch.partners, strict=True)]
            loaded = feed.train([(epoch, np.concatenate(pair) if mixing else pair[0]) for pair in parts])
            loss_sum = right_sum = 0.0
            network.train()
            for batch in batches:
                rate = learning_rate(
                    position.stage_step,
                    num_steps=stage.num_epochs * num_batches,
                    warmup_steps=round(config.warmup_epochs * num_batches),
                    peak=config.learning_rate,
                    schedule=config.schedule,
                )
                set_learning_rate(optimizer, rate)
                optimizer.zero_grad(set_to_none=True)
                sums = torch.zeros(2, device=device)  # loss, right answers
                key = (config.seed, epoch, position.step, 1)
                mix = sample_mix(config, key, network.image_size)
                for part, partners in zip(batch.parts, batch.partners, strict=True):
                    labels = labels_on_device[part]  # (B,)
                    inputs = feed.prepare(next(loaded))  # pixels (B, 3, S, S), or features
                    if mix:
                        inputs = mix(*inputs.chunk(2))
                    with autocast(device, precision):
                        logits = feed.classify(inputs).float()  # (B, K)
                    loss = sum_of_losses(logits, labels, config.label_smoothing)
                    if mix:
                        others = sum_of_losses(logits, labels_on_device[partners], config.label_smoothing)
                        loss = mix.share * loss + (1 - mix.share) * others
                    scaler.scale(loss / batch.size).backward()
                    sums += torch.stack([loss.detach(), (logits.argmax(dim=1) == labels).sum()])
                sum_gradients(weights.values())
                batch_loss, batch_right = sum_over_processes(sums).tolist()
                must_be_finite("step/loss", batch_loss / batch.size, position.step + 1)
                if config.clip_norm:
                    scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(weights.values(), config.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                if average:
                    average.update(weights)
                position.step += 1
                position.stage_step += 1
                loss_sum += batch_loss
                right_sum += batch_right
                if is_first:
                    log(position.step, {"step/loss": batch_loss / batch.size, "step/learning_rate": rate})
                bar.update()

            position.epoch, position.stage_epoch = epoch, position.stage_epoch + 1
            validation_loss, accuracy = validate(network, feed, validation.labels, config.batch_size, precision)
            must_be_finite("validation/loss", validation_loss, position.step)
            metrics = {
                "train/loss": loss_sum / len(train),
                "train/accuracy": right_sum / len(train),
                "validation/loss": validation_loss,
                "validation/accuracy": accuracy,
                "learning_rate": rate,
            }
            keep_best(position, network, changed, metrics, identity, folder)
            if average:
                with average.in_place_of(weights):
                    average_loss, accuracy = validate(network, feed, validation.labels, config.batch_size, precision)
                    averaged = {**metrics, "validation/loss": average_loss, "validation/accuracy": accuracy}
                    keep_best(position, network, changed, averaged, identity, folder)
                metrics |= {"validation/average_loss": average_loss, "validation/average_accuracy": accuracy}
            bar.set_postfix(epoch=epoch, loss=f"{validation_loss:.3f}", accuracy=f"{accuracy:.3f}")
            if bar.disable and is_first:  # nobody watches a bar: a line in the log
                notify_on_stderr(f"Epoch {epoch}: validation loss {validation_loss:.3f}, accuracy {accuracy:.3f}.")
            if is_first:
                log(position.step, metrics)
                state = {"identity": identity, "position": position.state_dict(), "weights": detached(changed)}
                state |= {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
                state |= {"average": average.state_dict() if average else {}}
                checkpoint.save(state, folder / checkpoint.LAST)
        position.next_stage()
    bar.close()

    barrier()  # until the first process has written the best weights
    best = load_compatible(folder / checkpoint.BEST, identity)
    network.load_state_dict(best["weights"], strict=False)
    merge_lora(network)
    network.eval()
    return TrainResult(
        best_epoch=position.best_epoch,
        best_metrics=position.best_metrics,
        num_epochs=position.epoch,
        num_steps=position.step,
        num_trained_parameters=position.num_trained_parameters,
    )


def sum_of_losses(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")


@torch.no_grad()
def validate(
    network: Classifier, feed: Inputs, labels: np.ndarray, batch_size: int, precision: str
) -> tuple[float, float]:
    """Loss and accuracy on validation, counted over images; several processes share the work."""
    loader: Loader = feed.validation
    mine = np.arange(len(labels))[rank() :: num_processes()]
    requests = [(1, mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]
    sums = torch.zeros(2, dtype=torch.float64, device=loader.device)
    network.eval()
    for (_, indices), images in zip(requests, loader(requests), strict=True):
        expected = torch.from_numpy(labels[indices]).to(loader.device)
        with autocast(loader.device, precision):
            logits = feed.classify(feed.prepare(images)).float()
        sums += torch.stack([sum_of_losses(logits, expected, 0.0), (logits.argmax(dim=1) == expected).sum()])
    loss, num_right = sum_over_processes(sums).tolist()
    return loss / len(labels), num_right / len(labels)


def must_be_finite(metric: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"{metric} became {value} at step {step}, and training stopped there: type a lower --learning-rate, "
            "a longer --warmup-epochs, or --clip-norm 1."
        )


def keep_best(
    position: TrainState,
    network: Classifier,
    changed: Mapping[str, Tensor],
    metrics: Mapping[str, float],
    identity: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write the weights down when no epoch before was as good on validation."""
    if not position.better(metrics["validation/accuracy"], metrics["validation/loss"]):
        return
    position.best_epoch = position.epoch
    position.best_accuracy, position.best_loss = metrics["validation/accuracy"], metrics["validation/loss"]
    position.best_metrics = dict(metrics)
    if rank() == 0:
        state = {"identity": identity, "epoch": position.epoch, "weights": detached(changed)}
        checkpoint.save(state, folder / checkpoint.BEST)


def detached(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Only what training changes is saved: frozen weights come from where training started."""
    return {name: weight.detach() for name, weight in weights.items()}
