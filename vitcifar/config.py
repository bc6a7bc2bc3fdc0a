"""Every setting of a training run, once: name, default, help with its unit, check; and the presets.

The command line, MLproject, MLflow's parameters and the README are generated from these fields or compared with them.
"""

import dataclasses
import math
import types
from collections.abc import Sequence
from typing import Any

from vitcifar.errors import ConfigError

# Settings of vitcifar 0.1 under another name -> theirs now. Read in old releases and runs; hidden options until 0.3.
RENAMED_SETTINGS = {"examine": "analysis", "robustness_pictures": "corruption_images", "outliers": "ood"}

VITS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14", "vit_tiny")


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    decides_weights: bool = False,
) -> Any:
    """A field of a config: its default, one line of help with its unit, its valid values, and `decides_weights`,
    whether another value gives other trained weights on the same images.
    """
    metadata = {"help": help, "choices": tuple(choices), "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata={**metadata, "decides_weights": decides_weights})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of `vitcifar train`. Raises ConfigError for a value that cannot be."""

    # Data
    data: str = setting("cifar10", "Where the images come from.", choices=("cifar10", "folder", "digits"))
    data_dir: str = setting("data", "Folder of the images (folder), or where the archive is kept (cifar10).")
    train_per_class: int = setting(100, "Training images per class (0 = all that are left).", minimum=0)
    validation_per_class: int = setting(25, "Validation images per class, from what training left over.", minimum=1)
    test_per_class: int = setting(25, "Test images per class (0 = all).", minimum=0)
    data_seed: int = setting(0, "Seed of the subset: which images are taken, and in which order.", minimum=0)
    seed: int = setting(
        0, "Seed of the new weights, the order of the batches and the augmentation.", minimum=0, decides_weights=True
    )

    # Model
    arch: str = setting("vit_b_16", "The vision transformer.", choices=VITS, decides_weights=True)
    weights: str = setting(
        "IMAGENET1K_V1",
        "Where training starts: torchvision's name, none, a file with a state dict, or models:/NAME/VERSION.",
        decides_weights=True,
    )
    image_size: int = setting(
        0, "Side in pixels that images are resized to (0 = the architecture's own).", minimum=0, decides_weights=True
    )
    train_layers: str = setting("head", "What trains: head, all, or a number of last blocks.", decides_weights=True)

    # Training
    epochs: int = setting(10, "Passes over the training images.", minimum=1, decides_weights=True)
    batch_size: int = setting(32, "Images per step.", minimum=1, decides_weights=True)
    learning_rate: float = setting(1e-3, "Peak learning rate.", minimum=0.0, decides_weights=True)
    schedule: str = setting(
        "cosine",
        "How the learning rate falls after the warm-up.",
        choices=("constant", "cosine", "linear"),
        decides_weights=True,
    )
    warmup_epochs: float = setting(
        1.0, "Epochs in which the learning rate rises from 0 (0 = none).", minimum=0.0, decides_weights=True
    )
    optimizer: str = setting("adam", "The optimizer.", choices=("adam", "adamw", "sgd"), decides_weights=True)
    weight_decay: float = setting(0.0, "Weight decay, on matrices alone (0 = none).", minimum=0.0, decides_weights=True)
    layer_decay: float = setting(
        1.0,
        "Learning rate of a block as a share of that of the block above it (1 = the same).",
        minimum=0.0,
        maximum=1.0,
        decides_weights=True,
    )
    clip_norm: float = setting(
        0.0, "Longest gradient; longer ones are shortened to it (0 = any length).", minimum=0.0, decides_weights=True
    )
    label_smoothing: float = setting(
        0.0,
        "Share of the label that is spread over all classes (0 = none).",
        minimum=0.0,
        maximum=0.9,
        decides_weights=True,
    )
    augmentation: str = setting(
        "none",
        "How training images are varied.",
        choices=("none", "crop", "flip", "crop-flip", "trivial", "rand"),
        decides_weights=True,
    )
    mixup: float = setting(0.0, "Mixup's alpha: pairs of images blended (0 = none).", minimum=0.0, decides_weights=True)
    cutmix: float = setting(
        0.0, "CutMix's alpha: a piece of one image put into another (0 = none).", minimum=0.0, decides_weights=True
    )
    ema_decay: float = setting(
        0.0,
        "Moving average of the weights, kept when better, such as 0.99 (0 = none).",
        minimum=0.0,
        maximum=0.99999,
        decides_weights=True,
    )
    patience: int = setting(
        0, "Epochs without a better one after which training stops (0 = never).", minimum=0, decides_weights=True
    )
    head_epochs: int = setting(
        0, "Epochs for the head alone, before what train_layers says (0 = none).", minimum=0, decides_weights=True
    )
    lora_rank: int = setting(
        0,
        "Rank of LoRA on the attention of the blocks that train, in place of all their weights (0 = none).",
        minimum=0,
        decides_weights=True,
    )
    resume: str = setting("none", "Go on from the last checkpoint of a run: none, last, or a run's id.")

    # Speed
    precision: str = setting(
        "auto",
        "Number format of the forward pass (auto = the faster one here).",
        choices=("auto", "fp32", "bf16", "fp16"),
        decides_weights=True,
    )
    compile: str = setting(
        "off", "Compile the network with torch.compile.", choices=("off", "on"), decides_weights=True
    )
    accumulation_steps: int = setting(
        1,
        "Parts that a batch is worked through in, to save memory; the result is the same.",
        minimum=1,
        decides_weights=True,
    )
    num_views: int = setting(
        4,
        "Augmented views of an image that frozen parts are computed for, once (0 = computed every epoch).",
        minimum=0,
        decides_weights=True,
    )
    cache_memory: float = setting(
        4.0, "Most memory in GB for what frozen parts computed.", minimum=0.0, decides_weights=True
    )
    num_workers: int = setting(0, "Processes beside the main one that prepare batches.", minimum=0)
    num_processes: int = setting(1, "Processes that share every batch, on this machine (also: torchrun).", minimum=1)
    device: str = setting("auto", "Where it trains.", choices=("auto", "cpu", "cuda"), decides_weights=True)

    # Evaluation
    analysis: str = setting(
        "quick",
        "Checks beyond the scores, and the report: none, quick (kinds of images, duplicates, attention: seconds) or "
        "full (also embeddings and corruptions: about 3,000 forward passes more).",
        choices=("none", "quick", "full"),
    )
    target_precision: float = setting(
        0.95,
        "Share of right answers that the confidence threshold is chosen for, on validation (0 = no threshold).",
        minimum=0.0,
        maximum=1.0,
    )
    corruption_images: int = setting(
        20, "Test images that `analysis full` asks for 75 times each, corrupted (0 = none).", minimum=0
    )
    ood: str = setting(
        "auto",
        "Images of something else, to be told from these: none, digits, cifar10 or a folder (auto = digits with "
        "`analysis full`, none where these are digits).",
    )

    # Tracking
    experiment: str = setting("vitcifar", "MLflow experiment.")
    run_name: str = setting("none", "Name of the run in MLflow (none = made from the settings).")
    output_dir: str = setting("runs", "Folder for checkpoints and TensorBoard's files, one folder a run.")

    # Release
    model_name: str = setting("vitcifar", "Name in the registry.")
    int8: str = setting(
        "off",
        "Try 8-bit forms; one serves if it answers alike, is not less accurate and is faster here (takes minutes).",
        choices=("off", "try"),
    )
    benchmark_runs: int = setting(
        20, "Answers timed for each row of the version's latency table (0 = no table).", minimum=0
    )
    promote_to: str = setting("none", "Alias that the new version takes if it passes the gates (none = no alias).")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check(field, getattr(self, field.name))
        layers = self.train_layers
        if layers not in ("head", "all") and not (layers.isdecimal() and int(layers) > 0):
            raise ConfigError(f"train_layers is {layers!r}: type head, all, or a number of blocks such as 2.")
        if self.head_epochs and layers == "head":
            raise ConfigError(
                "head_epochs come before other layers train, and train_layers is head: type --epochs alone."
            )
        if self.lora_rank and layers == "head":
            raise ConfigError("lora_rank is for blocks, and train_layers is head: type --train-layers all.")
        if self.accumulation_steps > self.batch_size:
            raise ConfigError(
                f"accumulation_steps is {self.accumulation_steps}: it must be at most batch_size, {self.batch_size}."
            )
        if self.analysis == "none" and self.ood not in ("none", "auto"):
            raise ConfigError(f"ood is {self.ood!r}, and analysis is none: type --analysis quick.")


# Headings of the help, each with the first field under it.
GROUPS = {
    "Data": "data",
    "Model": "arch",
    "Training": "epochs",
    "Speed": "precision",
    "Evaluation": "analysis",
    "Tracking": "experiment",
    "Release": "model_name",
}


def groups() -> dict[str, str]:
    """The name of every field -> the heading that it stands under."""
    heading_at, heading, placed = {first: heading for heading, first in GROUPS.items()}, "", {}
    for field in dataclasses.fields(TrainConfig):
        heading = heading_at.get(field.name, heading)
        placed[field.name] = heading
    return placed


def deciding_settings() -> tuple[str, ...]:
    """Names of the settings that decide the trained weights, in field order: a resumed run must have the same."""
    return tuple(field.name for field in dataclasses.fields(TrainConfig) if field.metadata["decides_weights"])


def check(field: dataclasses.Field, value: Any) -> None:
    """Hold a value against its field's type, choices and bounds; raises ConfigError."""
    expected = field.type
    if isinstance(value, bool) or not isinstance(value, (int, float) if expected is float else expected):  # type: ignore[arg-type]
        raise ConfigError(f"{field.name} is {value!r}: expected {expected.__name__}.")  # type: ignore[union-attr]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{field.name} is {value!r}: expected a finite number.")
    meta = field.metadata
    if meta["choices"] and value not in meta["choices"]:
        raise ConfigError(f"{field.name} is {value!r}: choose one of {', '.join(meta['choices'])}.")
    if meta["minimum"] is not None and not value >= meta["minimum"]:
        raise ConfigError(f"{field.name} is {value!r}: it must be at least {meta['minimum']}.")
    if meta["maximum"] is not None and not value <= meta["maximum"]:
        raise ConfigError(f"{field.name} is {value!r}: it must be at most {meta['maximum']}.")


PRESETS = types.MappingProxyType(
    {
        "cifar10": {},  # the defaults above
        "digits": {  # test accuracy 0.96 to 0.99 over six seeds
            "data": "digits",
            "arch": "vit_tiny",
            "weights": "none",
            "train_layers": "all",
            "epochs": 12,
            "batch_size": 25,
            "optimizer": "adamw",
            "weight_decay": 0.1,
            "analysis": "full",
            "promote_to": "champion",
        },
    }
)


def resolve(preset: str, **given: Any) -> TrainConfig:
    """The preset's settings, overridden by those that were given; raises ConfigError."""
    if preset not in PRESETS:
        raise ConfigError(f"There is no preset {preset!r}: choose one of {', '.join(PRESETS)}.")
    return TrainConfig(**{**PRESETS[preset], **given})
