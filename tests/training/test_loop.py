"""The loop: it learns, resumes bit for bit, and stops before a NaN enters the weights."""

import math
import re
import time

import pytest
import torch
from support.training import CLASSES, Logged, kill_at, settings, shades, train

from vitcifar.errors import TrainingError
from vitcifar.model.network import build_network, weights_sha256
from vitcifar.run import MEMORY, SPEED, SYSTEM_PREFIX
from vitcifar.training import checkpoint
from vitcifar.training.loop import fit


def test_the_loss_falls_and_every_metric_is_logged_at_its_step(tmp_path):
    log = Logged()
    _, outcome = train(tmp_path, log=log)
    assert outcome.num_steps == 9
    assert log["train/loss", 9] < log["train/loss", 3]
    per_step = {"step/loss", "step/learning_rate", "step/gradient_norm"}
    per_epoch = {f"{split}/{name}" for split in ("train", "validation") for name in ("loss", "accuracy")}
    per_epoch |= {"train/learning_rate", "validation/best_accuracy", SPEED, MEMORY}
    assert {name for name, step in log if step == 3} == per_epoch | per_step
    assert {name for name, step in log if step == 2} == per_step


def test_the_best_accuracy_is_that_of_the_epoch_whose_weights_are_kept(tmp_path):
    log = Logged()
    _, outcome = train(tmp_path, settings(epochs=4, learning_rate=0.02, schedule="constant"), log=log)
    best = [log["validation/best_accuracy", step] for step in (3, 6, 9, 12)]
    assert best == sorted(best)
    assert best[-1] == log["validation/accuracy", outcome.best_step] == outcome.best_metrics["validation/accuracy"]


def test_the_gradient_norm_is_that_before_clipping(tmp_path):
    plain, clipped = Logged(), Logged()
    train(tmp_path / "a", settings(epochs=1, optimizer="sgd"), log=plain)
    network, _ = train(tmp_path / "b", settings(epochs=1, optimizer="sgd", clip_norm=1e-4), log=clipped)
    assert plain["step/gradient_norm", 1] == clipped["step/gradient_norm", 1] > 1e-2
    assert 0 < network.head.weight.abs().max() < 1e-5  # three steps of at most learning rate x 1.9 x 1e-4 each


def test_speed_and_memory_are_those_of_this_process(tmp_path):
    log = Logged()
    started = time.perf_counter()
    train(tmp_path, settings(epochs=1), log=log)
    assert log[SPEED, 3] > 24 / (time.perf_counter() - started)
    assert 50 < log[MEMORY, 3] < 1e5  # torch alone takes more than 50 MB


def test_the_weights_and_gradients_of_the_head_are_logged_once_per_epoch(tmp_path):
    seen = {}
    fit(
        build_network(settings(), CLASSES), shades(8), shades(4, seed=1), settings(), folder=tmp_path,
        log=lambda step, metrics: None,
        log_histograms=lambda step, tensors: seen.update({step: {name: t.clone() for name, t in tensors.items()}}),
    )  # fmt: skip
    assert sorted(seen) == [3, 6, 9]
    assert set(seen[9]) == {"head/weight", "head/bias", "head/weight.gradient", "head/bias.gradient"}
    assert not torch.equal(seen[3]["head/weight"], seen[9]["head/weight"])
    assert all(bool(tensor.abs().sum() > 0) for tensor in seen[9].values())


def test_layer_wise_decay_logs_the_learning_rate_of_each_layer(tmp_path):
    log = Logged()
    train(tmp_path, settings(epochs=1, layer_decay=0.5, schedule="constant"), log=log)
    rates = [log[f"train/learning_rate_{layer}", 3] for layer in ("embedding", "block_1", "block_2", "head")]
    assert rates[-1] == log["train/learning_rate", 3]
    assert rates[0] < rates[1] == 0.5 * rates[2] < rates[-1]


def test_the_loss_of_an_epoch_is_a_mean_over_images_not_over_batches(tmp_path):
    log = Logged()
    train(tmp_path, settings(epochs=1, batch_size=23), log=log)  # batches of 23 and 1
    assert log["train/loss", 2] == pytest.approx((23 * log["step/loss", 1] + log["step/loss", 2]) / 24)


def test_the_network_ends_with_the_weights_of_its_best_epoch(tmp_path):
    log = Logged()
    network, outcome = train(tmp_path, settings(epochs=4, learning_rate=0.02, schedule="constant"), log=log)
    accuracies = [log["validation/accuracy", step] for step in (3, 6, 9, 12)]
    assert outcome.best_metrics["validation/accuracy"] == max(accuracies)
    assert accuracies[outcome.best_epoch - 1] == max(accuracies)
    best = checkpoint.load(tmp_path / checkpoint.BEST)
    assert best["epoch"] == outcome.best_epoch
    assert torch.equal(best["weights"]["head.weight"], network.head.weight)


def test_ema_weights_are_used_when_they_are_better_on_validation(tmp_path):
    log = Logged()
    _, outcome = train(tmp_path, settings(ema_decay=0.9, learning_rate=0.02, schedule="constant"), log=log)
    candidates = [
        (log[f"validation/{kind}accuracy", step], -log[f"validation/{kind}loss", step])
        for step in (3, 6, 9)
        for kind in ("", "ema_")
    ]
    best = (outcome.best_metrics["validation/accuracy"], -outcome.best_metrics["validation/loss"])
    assert best == max(candidates)


def test_training_the_head_does_not_change_the_backbone(tmp_path):
    config = settings(train_layers="head")
    before = weights_sha256(build_network(config, CLASSES).backbone)
    network, outcome = train(tmp_path, config)
    assert weights_sha256(network.backbone) == before
    assert network.head.weight.abs().sum() > 0
    assert outcome.num_trained_parameters == 96 * 3 + 3


def test_one_seed_gives_the_same_weights_twice_and_another_seed_different_ones(tmp_path):
    first, second, other = (train(tmp_path / str(n), settings(seed=seed))[0] for n, seed in enumerate((0, 0, 1)))
    assert weights_sha256(first) == weights_sha256(second) != weights_sha256(other)


@pytest.mark.parametrize("given", [{"mixup": 0.2}, {"cutmix": 1.0}, {"label_smoothing": 0.1}, {"clip_norm": 0.1}])
def test_regularised_training_learns_and_is_reproducible(tmp_path, given):
    log = Logged()
    network, _ = train(tmp_path / "one", settings(**given), log=log)
    assert log["validation/loss", 9] < log["validation/loss", 3]
    assert weights_sha256(train(tmp_path / "two", settings(**given))[0]) == weights_sha256(network)
    assert weights_sha256(train(tmp_path / "plain")[0]) != weights_sha256(network)


def test_a_loss_that_is_not_finite_stops_training_before_the_weights_change(tmp_path):
    config = settings()
    network = build_network(config, CLASSES)
    with torch.no_grad():
        network.head.bias[0] = math.nan
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    with pytest.raises(TrainingError, match="step/loss became nan at step 1"):
        fit(network, shades(8), shades(4, seed=1), config, log=Logged(), folder=tmp_path)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight.nan_to_num(), before[name].nan_to_num()), name


def test_resuming_a_finished_run_gives_its_best_weights_again(tmp_path):
    network, outcome = train(tmp_path)
    again, same_outcome = train(tmp_path, resume=tmp_path / checkpoint.LAST)
    assert weights_sha256(again) == weights_sha256(network)
    assert same_outcome == outcome


def decided(log, after_step=0):
    """What the settings decide, unlike speed and memory."""
    return {
        (name, step): value
        for (name, step), value in log.items()
        if step > after_step and not name.startswith(SYSTEM_PREFIX)
    }


@pytest.mark.parametrize("step", [4, pytest.param(9, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_step_and_resumed_equals_an_uninterrupted_one(tmp_path, step):
    uninterrupted, after = Logged(), Logged()
    network, outcome = train(tmp_path / "uninterrupted", log=uninterrupted)
    kill_at(step, tmp_path / "killed")
    resumed, same_outcome = train(tmp_path / "killed", resume=tmp_path / "killed" / checkpoint.LAST, log=after)
    assert weights_sha256(resumed) == weights_sha256(network)
    assert decided(after) == decided(uninterrupted, after_step=(step - 1) // 3 * 3)
    assert same_outcome == outcome


@pytest.mark.parametrize(
    ("given", "step"),
    [
        pytest.param({"num_workers": 2, "augmentation": "trivial", "mixup": 0.2}, 5, marks=pytest.mark.slow),
        pytest.param(
            {"head_epochs": 1, "ema_decay": 0.9, "optimizer": "adamw", "weight_decay": 0.1}, 5, marks=pytest.mark.slow
        ),
        ({"lora_rank": 2, "train_layers": "2", "optimizer": "sgd", "augmentation": "crop-flip"}, 2),
    ],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_with_any_settings(tmp_path, given, step):
    uninterrupted, after = Logged(), Logged()
    network, outcome = train(tmp_path / "uninterrupted", settings(**{**given, "num_workers": 0}), log=uninterrupted)
    kill_at(step, tmp_path / "killed", **given)
    path = tmp_path / "killed" / checkpoint.LAST
    resumed, same_outcome = train(tmp_path / "killed", settings(**given), resume=path, log=after)
    assert weights_sha256(resumed) == weights_sha256(network)
    assert decided(after) == decided(uninterrupted, after_step=(step - 1) // 3 * 3)
    assert same_outcome == outcome


def test_every_epoch_leaves_a_line_that_names_its_accuracy(tmp_path, capsys):
    train(tmp_path, settings(epochs=2))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Epoch ")]
    assert len(lines) == 2
    assert all(
        re.fullmatch(r"Epoch \d: train loss \S+ acc \S+, val loss \S+ acc \d\.\d{3}(, the best)?", line)
        for line in lines
    )
