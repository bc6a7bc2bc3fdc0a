"""What a report says about a training: its curves, its settings, and the command that repeats it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitcifar.config import TrainConfig
from vitcifar.presets import nearest_preset, train_command
from vitcifar.report import plots
from vitcifar.report.html import Finding, Section, Table

CURVES = ("train/loss", "validation/loss", "train/accuracy", "validation/accuracy")
NO_SETTINGS = ("resume", "run_name")  # of the training itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A training that has ended: `curves` by the name of the metric; the best epoch counts from 1, or `method` says how
    the weights were made without epochs, with further `options` of the command."""

    config: TrainConfig
    curves: Mapping[str, plots.Curve]
    best_epoch: int
    method: str = ""
    options: str = ""

    @property
    def num_epochs(self) -> int:
        return 0 if self.method else max((len(curve) for curve in self.curves.values()), default=0)


def training_findings(training: Training) -> list[Finding]:
    """The best epoch, and whether more epochs may help."""
    best, last = training.best_epoch, training.num_epochs
    if training.method:
        return [Finding(text=f"{training.method}.")]
    if not last:
        return []
    text = f"The weights are those of epoch {best} of {last}, the best on validation"
    return [Finding(text=f"{text}: more --epochs may help." if best == last else f"{text}.")]


def training_section(training: Training) -> Section:
    """Curves of loss and accuracy, the settings that differ from the defaults, and the command."""
    changed = different_settings(training.config)
    chosen = (
        f"{training.method[:1].lower()}{training.method[1:]}" or "the best epoch is chosen on the validation images"
    )
    again = dataclasses.replace(training.config, run_name="none")
    table = Table(
        title="Settings that differ from the defaults",
        header=["Setting", "Value", "Default", "Meaning"],
        rows=[[name, str(value), str(default), help] for name, value, default, help in changed],
    )
    return Section(
        title="Training",
        text=f"The test images took no part: {chosen}. This command repeats the training on the same images, from the "
        "same folder:",
        command=train_command(nearest_preset(again), again) + training.options,
        figures=[plots.training_curves(training.curves, training.best_epoch)] if training.num_epochs else [],
        tables=[table] if changed else [],
    )


def different_settings(config: TrainConfig) -> list[tuple[str, Any, Any, str]]:
    """Name, value, default and help of each setting that a run has of its own."""
    return [
        (field.name, value, field.default, field.metadata["help"])
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default and field.name not in NO_SETTINGS
    ]
