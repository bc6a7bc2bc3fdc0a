"""What trains when: one stage, or the head alone first and then the rest (Kumar et al. 2022)."""

import dataclasses
import math
from typing import Any

from torch import Tensor

from vitcifar.config import TrainConfig
from vitcifar.model.lora import train_lora
from vitcifar.model.network import Classifier, frozen_depth, set_trainable


@dataclasses.dataclass(frozen=True)
class Stage:
    """A number of epochs in which the same weights train."""

    train_layers: str
    num_epochs: int


@dataclasses.dataclass
class TrainState:
    """How far training is: counts of what is done, over all stages and in this one, and the best epoch so far."""

    epoch: int = 0
    step: int = 0
    stage: int = 0
    stage_epoch: int = 0
    stage_step: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    num_trained_parameters: int = 0

    def better(self, accuracy: float, loss: float) -> bool:
        """A higher accuracy on validation; of two equal ones, a lower loss."""
        return (accuracy, -loss) > (self.best_accuracy, -self.best_loss)

    def finished(self, stage: Stage, patience: int) -> bool:
        """All epochs of the stage are done, or none of the last `patience` ones was the best."""
        waited = min(self.stage_epoch, self.epoch - self.best_epoch)
        return self.stage_epoch >= stage.num_epochs or bool(patience and waited >= patience)

    def next_stage(self) -> None:
        self.stage, self.stage_epoch, self.stage_step = self.stage + 1, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def plan_stages(config: TrainConfig) -> list[Stage]:
    main = Stage(config.train_layers, config.epochs)
    return [Stage("head", config.head_epochs), main] if config.head_epochs else [main]


def enter_stage(network: Classifier, stage: Stage, lora_rank: int) -> dict[str, Tensor]:
    """Let gradients into what this stage trains, and nothing else; returns those weights by name."""
    set_trainable(network, stage.train_layers)
    if lora_rank:
        network.backbone.requires_grad_(False)
        if stage.train_layers != "head":
            train_lora(network.blocks[frozen_depth(network, stage.train_layers) or 0 :])
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
