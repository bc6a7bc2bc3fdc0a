"""Every setting of a training run, once: name, default, help with its unit, bounds, group, and whether it decides the
weights.

The command line, MLproject, MLflow's parameters and the README are generated from these fields or compared with them.
"""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from vitcifar.errors import ConfigError

# Settings of vitcifar 0.1 under another name -> theirs now. Read in old releases and runs; hidden options until 0.3.
RENAMED_SETTINGS = {"examine": "analysis", "robustness_pictures": "corruption_images", "outliers": "ood"}

VITS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_ti_16", "vit_s_16", "vit_s_14", "vit_b_14", "vit_tiny")
# torchvision's other one, and why it is refused before anything is read.
REFUSED_VITS = {"vit_h_14": "its weights take 2.5 GB, and one ONNX file holds at most 2 GB"}
MERGING_SCHEDULES = ("constant", "halving")


def setting(
    default: Any,
    help: str,
    *,
    group: str = "Options",
    choices: Sequence[str] = (),
    refused: Mapping[str, str] = types.MappingProxyType({}),
    minimum: float | None = None,
    maximum: float | None = None,
    decides_weights: bool = False,
) -> Any:
    """A field of a config: its default, one line of help with its unit, and its valid values.

    `refused` has further values that people type, and why they are no choices; `group` is its heading in the help;
    `decides_weights` says that another value gives other trained weights on the same images.
    """
    metadata = {
        "help": help,
        "group": group,
        "choices": tuple(choices),
        "refused": refused,
        "minimum": minimum,
        "maximum": maximum,
        "decides_weights": decides_weights,
    }
    return dataclasses.field(default=default, metadata=metadata)


_data = partial(setting, group="Data")
_model = partial(setting, group="Model", decides_weights=True)
_training = partial(setting, group="Training", decides_weights=True)
_speed = partial(setting, group="Speed", decides_weights=True)
_evaluation = partial(setting, group="Evaluation")
_tracking = partial(setting, group="Tracking")
_release = partial(setting, group="Release")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of `vitcifar train`. Raises ConfigError for an invalid value."""

    data: str = _data("cifar10", "Source of the images.", choices=("cifar10", "folder", "digits"))
    data_dir: str = _data("data", "Root folder of the images (folder), or download folder (cifar10).")
    train_per_class: int = _data(100, "Training images per class (0 = all that remain).", minimum=0)
    validation_per_class: int = _data(
        25, "Validation images per class, disjoint from training (0 = all of a validation folder).", minimum=0
    )
    test_per_class: int = _data(25, "Test images per class (0 = all).", minimum=0)
    data_seed: int = _data(0, "Random seed of the subset: which images, in which order.", minimum=0)
    seed: int = _data(0, "Random seed of initialisation, shuffling and augmentation.", minimum=0, decides_weights=True)

    arch: str = _model("vit_b_16", "Vision transformer architecture.", choices=VITS, refused=REFUSED_VITS)
    weights: str = _model(
        "IMAGENET1K_V1",
        "Initial weights: a torchvision name, none (random), a state dict file, or models:/NAME/VERSION.",
    )
    normalization: str = _model(
        "auto",
        "Mean and deviation of pixels: imagenet, half (0.5, 0.5), or auto (a version's in weights, else imagenet).",
        choices=("auto", "imagenet", "half"),
    )
    image_size: int = _model(0, "Input resolution in pixels (0 = the architecture's default).", minimum=0)
    token_merging: int = _model(
        0, "Pairs of similar tokens that each block merges (ToMe; 0 = off): faster, less accurate.", minimum=0
    )
    merging_schedule: str = _model(
        "constant",
        "Merged pairs over the blocks: constant, or halving (most in the first blocks: faster).",
        choices=MERGING_SCHEDULES,
    )
    train_layers: str = _model("head", "Trainable layers: head, all, or the number of last blocks.")

    epochs: int = _training(10, "Number of training epochs.", minimum=1)
    batch_size: int = _training(32, "Images per optimizer step.", minimum=1)
    learning_rate: float = _training(1e-3, "Peak learning rate.", minimum=0.0)
    schedule: str = _training("cosine", "Learning rate after warmup.", choices=("constant", "cosine", "linear"))
    warmup_epochs: float = _training(1.0, "Linear warmup in epochs (0 = off).", minimum=0.0)
    optimizer: str = _training("adam", "Optimizer.", choices=("adam", "adamw", "sgd"))
    weight_decay: float = _training(0.0, "Weight decay of matrices, not of biases and norms (0 = off).", minimum=0.0)
    layer_decay: float = _training(1.0, "Layer-wise learning-rate decay per block (1 = off).", minimum=0.0, maximum=1.0)
    clip_norm: float = _training(0.0, "Maximum gradient norm (0 = no clipping).", minimum=0.0)
    label_smoothing: float = _training(0.0, "Label smoothing (0 = off).", minimum=0.0, maximum=0.9)
    augmentation: str = _training(
        "none", "Augmentation policy.", choices=("none", "crop", "flip", "crop-flip", "trivial", "rand")
    )
    mixup: float = _training(0.0, "Mixup alpha (0 = off).", minimum=0.0)
    cutmix: float = _training(0.0, "CutMix alpha (0 = off).", minimum=0.0)
    ema_decay: float = _training(
        0.0, "EMA decay of weights, e.g. 0.99; used if better on validation (0 = off).", minimum=0.0, maximum=0.99999
    )
    patience: int = _training(0, "Early-stopping patience in epochs (0 = off).", minimum=0)
    head_epochs: int = _training(0, "Epochs that train the head alone before --train-layers (0 = off).", minimum=0)
    lora_rank: int = _training(0, "LoRA rank on attention of the trainable blocks (0 = full fine-tuning).", minimum=0)
    teacher: str = _training("none", "Version to learn from: none, models:/NAME/VERSION, or a version or alias.")
    distillation_temperature: float = _training(4.0, "Temperature of both softmaxes with a teacher.", minimum=1.0)
    distillation_weight: float = _training(
        0.9, "Weight of the teacher's loss; the labels' has the rest.", minimum=0.0, maximum=1.0
    )
    head_solver: str = _training(
        "minibatch",
        "Fit of the head: minibatch (epochs, with --optimizer) or lbfgs (logistic regression on frozen features, L2 by "
        "cross-validation).",
        choices=("minibatch", "lbfgs"),
    )
    resume: str = _training(
        "none", "Resume from a run's last checkpoint: none, last, or a run id.", decides_weights=False
    )

    precision: str = _speed(
        "auto", "Precision of the forward pass (auto = fastest here).", choices=("auto", "fp32", "bf16", "fp16")
    )
    compile: str = _speed("off", "Compile the network with torch.compile.", choices=("off", "on"))
    accumulation_steps: int = _speed(1, "Micro-batches per optimizer step (gradient accumulation).", minimum=1)
    num_views: int = _speed(4, "Augmented views per image with cached frozen features (0 = no cache).", minimum=0)
    cache_memory: float = _speed(
        4.0, "Memory limit of the images, and of the feature cache, in GB (0 = hold neither).", minimum=0.0
    )
    cache_disk: float = _speed(
        10.0,
        "Disk limit of the features of frozen layers that runs share, in GB (0 = keep none on disk).",
        minimum=0.0,
        decides_weights=False,
    )
    num_workers: int = _speed(
        0, "DataLoader worker processes (0 = load in the main process).", minimum=0, decides_weights=False
    )
    num_processes: int = _speed(
        1, "Data-parallel processes on this machine (or use torchrun).", minimum=1, decides_weights=False
    )
    device: str = _speed("auto", "Training device.", choices=("auto", "cpu", "cuda"))

    analysis: str = _evaluation(
        "quick",
        "Analysis beyond the metrics: none, quick (slices, near-duplicates, attention; seconds) or full (adds "
        "embeddings, corruptions and OOD; about 3,000 forward passes).",
        choices=("none", "quick", "full"),
    )
    target_precision: float = _evaluation(
        0.95,
        "Precision that the confidence threshold is tuned to on validation (0 = no threshold).",
        minimum=0.0,
        maximum=1.0,
    )
    corruption_images: int = _evaluation(
        20, "Test images of the corruption benchmark (75 passes each) in a full analysis (0 = off).", minimum=0
    )
    ood: str = _evaluation(
        "auto",
        "Out-of-distribution images to test detection on: none, digits, cifar10 or a folder (auto = digits in a full "
        "analysis of other data).",
    )

    experiment: str = _tracking("Default", "MLflow experiment.")
    run_name: str = _tracking("none", "Name of the run in MLflow (none = generated from the settings).")
    output_dir: str = _tracking("runs", "Folder of checkpoints and TensorBoard logs, with a subfolder per run.")

    model_name: str = _release("vitcifar", "Name of the model in the registry.")
    int8: str = _release(
        "off",
        "Quantize to int8 (takes minutes); serve int8 if it agrees, is not less accurate and is faster here.",
        choices=("off", "try"),
    )
    max_p95_ms: float = _release(
        0.0,
        "Latency budget, 95th percentile of one image in ms: the fastest variant that is not worse is registered too, "
        "and promoted instead (0 = none).",
        minimum=0.0,
    )
    benchmark_runs: int = _release(20, "Timed predictions per row of the latency table (0 = no table).", minimum=0)
    promote_to: str = _release(
        "none", "Alias to point at the new version if it passes the gates (none = no promotion)."
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check(field, getattr(self, field.name))
        layers = self.train_layers
        if layers not in ("head", "all") and not (layers.isdecimal() and int(layers) > 0):
            raise ConfigError(f"train_layers is {layers!r}: type head, all, or a number of blocks such as 2.")
        if self.head_epochs and layers == "head":
            raise ConfigError("head_epochs has no effect when train_layers is head: use --epochs alone.")
        if self.lora_rank and layers == "head":
            raise ConfigError("lora_rank adapts blocks, but train_layers is head: type --train-layers all.")
        if self.head_solver == "lbfgs":
            self._check_lbfgs()
        if self.accumulation_steps > self.batch_size:
            raise ConfigError(
                f"accumulation_steps is {self.accumulation_steps}: at most batch_size, {self.batch_size}."
            )
        if self.analysis == "none" and self.ood not in ("none", "auto"):
            raise ConfigError(f"ood is {self.ood!r}, but analysis is none: type --analysis quick.")

    def _check_lbfgs(self) -> None:
        fits = "head_solver lbfgs fits the head alone, to the labels of all features at once"
        needs = {"train_layers": "head", "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "teacher": "none"}
        for name, needed in needs.items():
            if (value := getattr(self, name)) != needed:
                raise ConfigError(f"{fits}, but {name} is {value}: type --{name.replace('_', '-')} {needed}.")
        if not self.num_views:
            raise ConfigError(f"{fits}, but num_views is 0: type --num-views 1.")
        if self.num_processes > 1:
            raise ConfigError(f"{fits}, in one process, but num_processes is {self.num_processes}.")


def groups() -> dict[str, str]:
    """The name of every setting -> its group, in field order."""
    return {field.name: field.metadata["group"] for field in dataclasses.fields(TrainConfig)}


def deciding_settings() -> tuple[str, ...]:
    """Names of the settings that decide the trained weights, in field order: a resumed run must have the same."""
    return tuple(field.name for field in dataclasses.fields(TrainConfig) if field.metadata["decides_weights"])


def upgrade_settings(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Settings recorded by this or an earlier vitcifar, under today's names."""
    return {RENAMED_SETTINGS.get(name, name): value for name, value in recorded.items()}


def check(field: dataclasses.Field[Any], value: Any) -> None:
    """Check a value against its field's type, choices and bounds. Raises ConfigError."""
    expected, meta = field.type, field.metadata
    assert isinstance(expected, type)
    if isinstance(value, bool) or not isinstance(value, (int, float) if expected is float else expected):
        raise ConfigError(f"{field.name} is {value!r}: expected {expected.__name__}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{field.name} is {value!r}: expected a finite number.")
    if meta["choices"] and value not in meta["choices"]:
        why = f", but {meta['refused'][value]}" if value in meta["refused"] else ""
        raise ConfigError(f"{field.name} is {value!r}{why}: choose one of {', '.join(meta['choices'])}.")
    if meta["minimum"] is not None and not value >= meta["minimum"]:
        raise ConfigError(f"{field.name} is {value!r}: it must be at least {meta['minimum']}.")
    if meta["maximum"] is not None and not value <= meta["maximum"]:
        raise ConfigError(f"{field.name} is {value!r}: it must be at most {meta['maximum']}.")
