"""The settings: their metadata and their checks."""

import dataclasses
import itertools

import pytest

from vitcifar.config import RENAMED_SETTINGS, TrainConfig, deciding_settings, groups, upgrade_settings
from vitcifar.errors import ConfigError

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
# Reviewed by hand: another value of one of these gives other weights on the same images. The data settings choose the
# images, which the fingerprint covers; the number of workers and of processes changes nothing.
DECIDES_WEIGHTS = {
    *("seed", "arch", "weights", "image_size", "train_layers", "epochs", "batch_size", "learning_rate", "schedule"),
    *("warmup_epochs", "optimizer", "weight_decay", "layer_decay", "clip_norm", "label_smoothing", "augmentation"),
    *(
        "mixup",
        "cutmix",
        "normalization",
        "token_merging",
        "merging_schedule",
        "teacher",
        "distillation_temperature",
        "distillation_weight",
        "ema_decay",
        "patience",
        "head_epochs",
        "lora_rank",
        "precision",
        "compile",
    ),
    *("accumulation_steps", "num_views", "cache_memory", "device", "head_solver"),
}
OTHERS = {
    *("data", "data_dir", "train_per_class", "validation_per_class", "test_per_class", "data_seed", "resume"),
    *("num_workers", "num_processes", "analysis", "target_precision", "corruption_images", "ood", "experiment"),
    *("run_name", "output_dir", "model_name", "int8", "max_p95_ms", "benchmark_runs", "promote_to", "cache_disk"),
}


def test_every_setting_that_changes_the_weights_says_so():
    assert set(deciding_settings()) == DECIDES_WEIGHTS
    assert set(FIELDS) == DECIDES_WEIGHTS | OTHERS, "review whether the new setting decides the weights"


def test_every_setting_has_a_group_and_groups_are_contiguous():
    names = list(groups().values())
    assert list(dict.fromkeys(names)) == ["Data", "Model", "Training", "Speed", "Evaluation", "Tracking", "Release"]
    assert sum(one != other for one, other in itertools.pairwise(names)) == 6


@pytest.mark.parametrize("name", list(FIELDS))
def test_a_help_text_is_one_sentence_that_starts_with_a_capital(name):
    text = FIELDS[name].metadata["help"]
    assert text.endswith(".") and text[0].isupper() and len(text) < 170


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.metadata["minimum"] is not None])
def test_a_value_below_the_minimum_is_rejected_with_the_bound(name):
    minimum = FIELDS[name].metadata["minimum"]
    with pytest.raises(ConfigError, match=f"{name} is .*: it must be at least {minimum}"):
        TrainConfig(**{name: minimum - 1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 1.5},
        {"epochs": True},
        {"learning_rate": float("nan")},
        {"optimizer": "adamm"},
        {"label_smoothing": 0.95},
        {"train_layers": "0"},
        {"head_epochs": 1},
        {"lora_rank": 4},
        {"accumulation_steps": 64},
        {"analysis": "none", "ood": "digits"},
    ],
    ids=str,
)
def test_an_invalid_value_or_combination_is_rejected(wrong):
    with pytest.raises(ConfigError, match=list(wrong)[-1]):
        TrainConfig(**wrong)


def test_an_architecture_that_no_onnx_file_can_hold_is_refused_with_the_reason_before_anything_is_read():
    with pytest.raises(ConfigError, match=r"one ONNX file holds at most 2 GB: choose one of vit_b_16, .*, vit_tiny"):
        TrainConfig(arch="vit_h_14")
    assert "vit_h_14" not in FIELDS["arch"].metadata["choices"]


def test_settings_recorded_under_old_names_are_upgraded():
    old = dataclasses.asdict(TrainConfig())
    for before, now in RENAMED_SETTINGS.items():
        old[before] = old.pop(now)
    assert TrainConfig(**upgrade_settings(old)) == TrainConfig()
    assert upgrade_settings(dataclasses.asdict(TrainConfig())) == dataclasses.asdict(TrainConfig())
