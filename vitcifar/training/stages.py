"""What a run and each of its stages set up: optimizer, learning-rate schedule, EMA of the weights, and inputs.

There is one stage, or two: first the head alone, then the rest (Kumar et al. 2022)."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import TrainingError, reason_of
from vitcifar.model.lora import add_lora, train_lora
from vitcifar.model.network import Classifier, Images, frozen_depth, set_trainable
from vitcifar.training.batches import AugmentedImages, cached_features, plan_cache
from vitcifar.training.checkpoint import CURE, LAST, Checkpoints, check_tensors, identity_of
from vitcifar.training.distillation import Teacher, prepare_teacher
from vitcifar.training.distributed import choose_device, choose_precision, rank
from vitcifar.training.feature_cache import FeatureCache, network_key
from vitcifar.training.loader import Loader
from vitcifar.training.state import Stage, TrainState

Log = Callable[[int, Mapping[str, float]], object]
LogHistograms = Callable[[int, Mapping[str, Tensor]], object]


@dataclasses.dataclass(frozen=True)
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
    log_histograms: LogHistograms
    notify: Callable[[str], object]
    teacher: Classifier | None = None
    feature_cache: FeatureCache | None = None

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
    log_histograms: LogHistograms,
    notify: Callable[[str], object],
    folder: Path,
    resume: Path | None,
    teacher: Classifier | None = None,
    feature_cache: FeatureCache | None = None,
) -> tuple[Setup, list[Stage], dict[str, Any]]:
    """Move the network to its device, add LoRA, and load the checkpoint to continue from, or one without progress."""
    device = choose_device(config.device)
    network.to(device)
    if config.lora_rank:
        add_lora(network.blocks[frozen_depth(network, config.train_layers) or 0 :], config.lora_rank, config.seed)
    stages = [Stage("head", config.head_epochs)] if config.head_epochs else []
    stages.append(Stage(config.train_layers, config.epochs))
    weights = enter_stage(network, stages[-1], config.lora_rank)  # the last stage trains all that trains
    checkpoints = Checkpoints(folder=folder, identity=identity_of(network, weights, train, config), weights=weights)
    saved: dict[str, Any] = {"state": {}}
    checkpoints.remove_partial()
    if resume is not None:
        saved = checkpoints.load(resume)
        network.load_state_dict(saved["weights"], strict=False)
    else:
        checkpoints.save(LAST, state={}, weights={})  # so that a run killed in its first epoch can be resumed
    precision = choose_precision(config, device, network.backbone.hidden_dim)
    labels = torch.from_numpy(train.labels).to(device)
    if rank() > 0:
        log, log_histograms, notify = lambda step, metrics: None, lambda step, tensors: None, lambda message: None
    if feature_cache:
        feature_cache = dataclasses.replace(feature_cache, notify=notify)
    data = (network, train, validation, config, device, precision, labels)
    setup = Setup(*data, checkpoints, log, log_histograms, notify, teacher, feature_cache)
    return setup, stages, saved


def enter_stage(network: Classifier, stage: Stage, lora_rank: int) -> dict[str, Tensor]:
    """Freeze everything that this stage does not train; returns the trainable weights by name."""
    set_trainable(network, stage.train_layers)
    if lora_rank:
        network.backbone.requires_grad_(False)
        train_lora(network.blocks[frozen_depth(network, stage.train_layers) or 0 :])
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


class EMA:
    """Exponential moving average of weights; the decay is warmed up, so that short runs benefit too."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.replaced: dict[str, Tensor] = {}  # inside `swapped_into`, the weights themselves
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Average in the weights after an optimizer step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        latest = [weights[name].detach() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), latest, 1 - decay)

    @contextmanager
    def swapped_into(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block, `weights` hold the averages."""
        with torch.no_grad():
            self.replaced = {name: weights[name].clone() for name in self.weights}
            for name, weight in self.weights.items():
                weights[name].copy_(weight)
            yield
            for name, weight in self.replaced.items():
                weights[name].copy_(weight)
            self.replaced = {}

    def state_dict(self) -> dict[str, object]:
        return {"num_updates": self.num_updates, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        for name, weight in state["weights"].items():
            self.weights[name].copy_(weight)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Loaders of training and validation batches, and the two steps from a batch to logits (B, K)."""

    train: Loader
    validation: Loader
    preprocess: Callable[[Images], Tensor]  # -> pixels (B, 3, S, S), or the features as loaded
    classify: Callable[[Tensor], Tensor]
    teacher: Teacher | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActiveStage:
    """What one stage trains, with what, and on what."""

    weights: Mapping[str, Tensor]
    schedule: Callable[[int], float]  # the learning rate of each step of the stage, from 0
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
    if state.stage_step:
        restore(saved, optimizer, scaler, ema)
    inputs = prepare_inputs(setup, stage.train_layers)
    schedule = partial(
        learning_rate,
        num_steps=stage.num_epochs * setup.num_batches,
        warmup_steps=round(config.warmup_epochs * setup.num_batches),
        peak=config.learning_rate,
        schedule=config.schedule,
    )
    return ActiveStage(weights=weights, schedule=schedule, optimizer=optimizer, scaler=scaler, ema=ema, inputs=inputs)


def restore(
    saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, ema: EMA | None
) -> None:
    """Load the states of a checkpoint; raises TrainingError for those of another network, optimizer or torch."""
    try:
        optimizer.load_state_dict(saved["optimizer"])
        for weight, state in optimizer.state.items():
            if strange := [name for name, value in state.items() if value.ndim and value.shape != weight.shape]:
                raise ValueError(f"{strange[0]} has another shape than its weight")
        scaler.load_state_dict(saved["scaler"])
        if ema:
            check_tensors(saved["ema"]["weights"], ema.weights, "The EMA of the checkpoint")
            ema.load_state_dict(saved["ema"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(
            f"The checkpoint's optimizer, scaler or EMA does not fit this run ({reason_of(error)}): {CURE}."
        ) from error


def prepare_inputs(setup: Setup, train_layers: str) -> Inputs:
    """Decide whether frozen features are cached, report the decision, and compute them."""
    network, config, device = setup.network, setup.config, setup.device
    images = train = Loader(AugmentedImages(setup.train, config.augmentation, config.seed), config.num_workers, device)
    validation = Loader(AugmentedImages(setup.validation, "none", config.seed), 0, device)
    preprocess: Callable[[Images], Tensor] = network.preprocess
    classify: Callable[[Tensor], Tensor] = network.from_pixels
    depth = frozen_depth(network, train_layers)
    sizes = len(setup.train), len(setup.validation)
    num_views, message = plan_cache(network, config, depth, sizes)
    if message:
        setup.notify(message)
    if depth is not None and num_views:
        key = cache(partial(network_key, network, depth=depth, precision=setup.precision))
        features = partial(
            cached_features, network, depth=depth, precision=setup.precision, cache=setup.feature_cache, key=key
        )
        train = Loader(features(train, num_views=num_views), 0, device)
        validation = Loader(features(validation, num_views=1), 0, device)
        preprocess, classify = nn.Identity(), partial(network.forward_head, depth=depth)
    teacher = None
    if setup.teacher:
        always_same = config.augmentation == "none" and not (config.mixup or config.cutmix)
        views = (num_views or int(always_same), sizes[0])
        teacher = prepare_teacher(
            setup.teacher, images, config, sizes=views, student_size=network.image_size, notify=setup.notify
        )
    if config.compile == "on":
        classify = torch.compile(classify)
    return Inputs(train, validation, preprocess, classify, teacher)


def build_optimizer(weights: Mapping[str, Tensor], config: TrainConfig, num_blocks: int) -> torch.optim.Optimizer:
    """The optimizer over these weights, in parameter groups that carry the `scale` of their learning rate.

    Weight decay applies to matrices only: not to norms, biases, class token and position embedding. Layer-wise
    learning-rate decay: Bao et al. 2022, "BEiT".
    """
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, weight in weights.items():
        scale = config.layer_decay ** (num_blocks + 1 - layer_of(name, num_blocks))
        groups.setdefault((scale, weight.ndim in (2, 4)), []).append(weight)
    settings: list[dict[str, Any]] = [
        {"params": members, "weight_decay": config.weight_decay if is_matrix else 0.0, "scale": scale}
        for (scale, is_matrix), members in sorted(groups.items(), key=lambda group: group[0])
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True)
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(settings, lr=config.learning_rate, fused=True)


def rates_by_layer(optimizer: torch.optim.Optimizer, config: TrainConfig, num_blocks: int) -> dict[str, float]:
    """With layer-wise decay, the learning rate of each layer that trains, as a metric by its name."""
    if config.layer_decay in (0.0, 1.0):
        return {}
    names = ["embedding", *(f"block_{number}" for number in range(1, num_blocks + 1)), "head"]
    rates = {}
    for group in optimizer.param_groups:  # the index of a layer is the exponent of its scale: see build_optimizer
        layer = num_blocks + 1 - round(math.log(group["scale"], config.layer_decay))
        rates[f"train/learning_rate_{names[layer]}"] = float(group["lr"])
    return rates


def layer_of(name: str, num_blocks: int) -> int:
    """0 for patch and position embedding, 1 ... for the blocks, num_blocks + 1 for the final norm and the head."""
    if block := re.search(r"\.encoder_layer_(\d+)\.", name):
        return 1 + int(block[1])
    return num_blocks + 1 if name.startswith(("head.", "backbone.encoder.ln.")) else 0


def learning_rate(step: int, *, num_steps: int, warmup_steps: int, peak: float, schedule: str) -> float:
    """The learning rate of step 0, 1, ...: linear warm-up to `peak`, then decay towards 0 at `num_steps`.

    Cosine: Loshchilov & Hutter 2017.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)  # 0 ... 1
    return peak * (1 - progress) if schedule == "linear" else peak * (1 + math.cos(math.pi * progress)) / 2
