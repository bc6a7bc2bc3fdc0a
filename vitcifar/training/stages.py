"""What a run and each of its stages set up before the first step.

There is one stage, or two: first the head alone, then the rest (Kumar et al. 2022)."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.model.lora import add_lora, train_lora
from vitcifar.model.network import Classifier, frozen_depth, set_trainable
from vitcifar.training.checkpoint import LAST, Checkpoints, identity_of
from vitcifar.training.distributed import choose_device, choose_precision, rank
from vitcifar.training.feature_cache import Inputs, prepare_inputs
from vitcifar.training.optimizer import EMA, build_optimizer

Log = Callable[[int, Mapping[str, float]], object]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A number of epochs in which the same layers train."""

    train_layers: str
    num_epochs: int


@dataclasses.dataclass
class TrainState:
    """Progress of training: completed epochs and steps, in total and in this stage, and the best epoch so far."""

    epoch: int = 0
    step: int = 0
    stage: int = 0
    stage_epoch: int = 0
    stage_step: int = 0
    best_epoch: int = 0
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def is_better(self, metrics: Mapping[str, float]) -> bool:
        """Whether validation accuracy is higher than in the best epoch or, at equal accuracy, the loss is lower."""
        best = self.best_metrics
        best_accuracy, best_loss = best.get("validation/accuracy", -1.0), best.get("validation/loss", math.inf)
        return (metrics["validation/accuracy"], -metrics["validation/loss"]) > (best_accuracy, -best_loss)

    def finished(self, stage: Stage, patience: int) -> bool:
        """Whether all epochs of the stage are complete, or early stopping applies: none of the last `patience` was
        the best."""
        num_epochs_since_best = min(self.stage_epoch, self.epoch - self.best_epoch)
        return self.stage_epoch >= stage.num_epochs or bool(patience and num_epochs_since_best >= patience)

    def next_stage(self) -> None:
        self.stage, self.stage_epoch, self.stage_step = self.stage + 1, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def plan_stages(config: TrainConfig) -> list[Stage]:
    main = Stage(config.train_layers, config.epochs)
    return [Stage("head", config.head_epochs), main] if config.head_epochs else [main]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What all stages share."""

    network: Classifier
    train: ImageDataset
    validation: ImageDataset
    config: TrainConfig
    device: torch.device
    precision: str
    labels: Tensor  # of the training images, on the device
    checkpoints: Checkpoints
    log: Log
    notify: Callable[[str], object]

    @property
    def num_batches(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(len(self.train) / self.config.batch_size)


def prepare(
    network: Classifier,
    train: ImageDataset,
    validation: ImageDataset,
    config: TrainConfig,
    log: Log,
    notify: Callable[[str], object],
    folder: Path,
    resume: Path | None,
) -> tuple[Setup, dict[str, Any]]:
    """Move the network to its device, add LoRA, and load the checkpoint to continue from ({} if there is none)."""
    device = choose_device(config.device)
    network.to(device)
    if config.lora_rank:
        add_lora(network.blocks[frozen_depth(network, config.train_layers) or 0 :], config.lora_rank, config.seed)
    weights = enter_stage(network, plan_stages(config)[-1], config.lora_rank)  # the last stage trains all that trains
    checkpoints = Checkpoints(folder=folder, identity=identity_of(network, weights, train, config), weights=weights)
    saved: dict[str, Any] = {}
    if resume is not None:
        saved = checkpoints.load(resume)
        network.load_state_dict(saved["weights"], strict=False)
    else:
        checkpoints.save(LAST, state={}, weights={})  # so that a run killed in its first epoch can be resumed
    setup = Setup(
        network=network,
        train=train,
        validation=validation,
        config=config,
        device=device,
        precision=choose_precision(config, device, network.backbone.hidden_dim),
        labels=torch.from_numpy(train.labels).to(device),
        checkpoints=checkpoints,
        log=log if rank() == 0 else lambda step, metrics: None,
        notify=notify if rank() == 0 else lambda message: None,
    )
    return setup, saved


def enter_stage(network: Classifier, stage: Stage, lora_rank: int) -> dict[str, Tensor]:
    """Freeze everything that this stage does not train; returns the trainable weights by name."""
    set_trainable(network, stage.train_layers)
    if lora_rank:
        network.backbone.requires_grad_(False)
        if stage.train_layers != "head":
            train_lora(network.blocks[frozen_depth(network, stage.train_layers) or 0 :])
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActiveStage:
    """What one stage trains, with what, and on what."""

    num_steps: int
    weights: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: EMA | None
    inputs: Inputs


def begin_stage(setup: Setup, stage: Stage, state: TrainState, saved: Mapping[str, Any]) -> ActiveStage:
    """Optimizer, gradient scaler, EMA and inputs of a stage; in the middle of a stage, as the checkpoint has them."""
    config = setup.config
    weights = enter_stage(setup.network, stage, config.lora_rank)
    optimizer = build_optimizer(weights, config, len(setup.network.blocks))
    scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.precision == "fp16")
    ema = EMA(weights, config.ema_decay) if config.ema_decay else None
    if state.stage_epoch:
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        if ema:
            ema.load_state_dict(saved["ema"])
    inputs = prepare_inputs(
        setup.network, setup.train, setup.validation, config, stage.train_layers, setup.precision, setup.notify
    )
    num_steps = stage.num_epochs * setup.num_batches
    return ActiveStage(num_steps=num_steps, weights=weights, optimizer=optimizer, scaler=scaler, ema=ema, inputs=inputs)
