"""The loop: it learns, it can be killed and go on, and it stops before harm is done."""

import itertools
import math
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from support.training import CLASSES, Logged, kill_at, settings, shades, train

from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import TrainingError
from vitcifar.model.network import build_network, weights_sha256
from vitcifar.training import checkpoint
from vitcifar.training.loop import fit
from vitcifar.training.optimizer import learning_rate


def test_the_loss_falls_and_every_name_is_logged_at_its_step(tmp_path):
    log = Logged()
    _, outcome = train(tmp_path, log=log)
    assert outcome.num_steps == 9
    assert log["train/loss", 9] < log["train/loss", 3]
    per_epoch = {"train/loss", "train/accuracy", "validation/loss", "validation/accuracy", "learning_rate"}
    assert {name for name, step in log if step == 3} == per_epoch | {"step/loss", "step/learning_rate"}
    assert {name for name, step in log if step == 2} == {"step/loss", "step/learning_rate"}


def test_a_log_function_that_does_nothing_is_enough(tmp_path):
    train(tmp_path, log=lambda step, metrics: None)


def test_the_epochs_loss_is_counted_over_pictures_not_batches(tmp_path):
    log = Logged()
    train(tmp_path, settings(epochs=1, batch_size=23), log=log)  # batches of 23 and 1
    assert log["train/loss", 2] == pytest.approx((23 * log["step/loss", 1] + log["step/loss", 2]) / 24)


def test_the_best_epoch_is_the_one_that_the_network_ends_with(tmp_path):
    log = Logged()
    network, outcome = train(tmp_path, settings(epochs=4, learning_rate=0.02, schedule="constant"), log=log)
    accuracies = [log["validation/accuracy", step] for step in (3, 6, 9, 12)]
    assert outcome.best_metrics["validation/accuracy"] == max(accuracies)
    assert accuracies[outcome.best_epoch - 1] == max(accuracies)
    best = checkpoint.load(tmp_path / checkpoint.BEST)
    assert best["epoch"] == outcome.best_epoch
    assert torch.equal(best["weights"]["head.weight"], network.head.weight)


def test_training_the_head_leaves_the_backbone_as_it_was_bit_for_bit(tmp_path):
    config = settings(train_layers="head")
    before = weights_sha256(build_network(config, CLASSES).backbone)
    network, outcome = train(tmp_path, config)
    assert weights_sha256(network.backbone) == before
    assert network.head.weight.abs().sum() > 0
    assert outcome.num_trained_parameters == 96 * 3 + 3


def test_one_seed_gives_the_same_weights_twice_and_another_seed_others(tmp_path):
    one, same, other = (train(tmp_path / str(n), settings(seed=seed))[0] for n, seed in enumerate((0, 0, 1)))
    assert weights_sha256(one) == weights_sha256(same) != weights_sha256(other)


def test_pictures_of_mixed_sizes_train(tmp_path):
    data = shades(8)
    images = [image[: 5 + place % 4] for place, image in enumerate(data.images)]
    mixed = ImageDataset(images=images, labels=data.labels, class_names=CLASSES, ids=data.ids)
    log = Logged()
    train(tmp_path, log=log, dataset=mixed)
    assert log["train/loss", 9] < log["train/loss", 3]


def test_a_loss_that_is_not_finite_stops_before_the_weights_take_it_in(tmp_path):
    config = settings()
    network = build_network(config, CLASSES)
    with torch.no_grad():
        network.head.bias[0] = math.nan
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    with pytest.raises(TrainingError, match="step/loss became nan at step 1"):
        fit(network, shades(8), shades(4, seed=1), config, log=Logged(), folder=tmp_path)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight.nan_to_num(), before[name].nan_to_num()), name


def test_memory_does_not_grow_with_epochs(tmp_path):
    used: list[float] = []

    def log(step, metrics):
        if "validation/loss" in metrics:
            used.append(psutil.Process().memory_info().rss / 1e6)  # MB

    train(tmp_path, settings(epochs=12, train_layers="1", batch_size=50), log=log, dataset=shades(200, size=32))
    assert len(used) == 12
    assert used[-1] - used[3] < 8


def test_resuming_with_other_settings_says_which(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match=r"made with learning_rate 0.001, not 0.01"):
        train(tmp_path, settings(learning_rate=0.01), resume=tmp_path / checkpoint.LAST)


def test_resuming_with_other_pictures_or_a_broken_checkpoint_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match="other images"):
        train(tmp_path, resume=tmp_path / checkpoint.LAST, dataset=shades(8, seed=9))
    (tmp_path / checkpoint.LAST).write_bytes(b"cut off")
    with pytest.raises(TrainingError, match="cannot be read"):
        train(tmp_path, resume=tmp_path / checkpoint.LAST)


def test_resuming_a_finished_run_gives_its_best_weights_again(tmp_path):
    network, outcome = train(tmp_path)
    again, same = train(tmp_path, resume=tmp_path / checkpoint.LAST)
    assert weights_sha256(again) == weights_sha256(network)
    assert same == outcome


@pytest.mark.parametrize("step", [4, 9])
def test_killed_at_any_step_and_resumed_equals_never_killed_bit_for_bit(tmp_path, step):
    whole, again = Logged(), Logged()
    network, outcome = train(tmp_path / "whole", log=whole)
    kill_at(step, tmp_path / "killed")
    resumed, same = train(tmp_path / "killed", resume=tmp_path / "killed" / checkpoint.LAST, log=again)
    assert weights_sha256(resumed) == weights_sha256(network)
    assert again == {key: value for key, value in whole.items() if key[1] > (step - 1) // 3 * 3}
    assert same == outcome


def test_a_checkpoint_is_whole_whenever_its_writer_is_killed(tmp_path):
    script = """
import sys, torch
from pathlib import Path
from vitcifar.training import checkpoint
for number in range(10**6):
    checkpoint.save({"number": number, "weights": torch.full((300_000,), float(number))}, Path(sys.argv[1]))
"""
    path = tmp_path / "last.pt"
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    writer.kill()
    writer.wait()
    state = checkpoint.load(path)
    assert torch.equal(state["weights"], torch.full((300_000,), float(state["number"])))


def test_the_learning_rate_rises_then_falls_to_nearly_nothing():
    rates = [learning_rate(step, num_steps=100, warmup_steps=10, peak=1.0, schedule="cosine") for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("linear", 0.01)])
def test_other_schedules_end_where_they_should(schedule, last):
    assert learning_rate(99, num_steps=100, warmup_steps=0, peak=1.0, schedule=schedule) == pytest.approx(last)
