"""Optimizers, learning-rate schedules and EMA."""

import itertools

import pytest
import torch
from support.training import CLASSES, Logged, settings, train

from vitcifar.model.network import build_network
from vitcifar.presets import resolve
from vitcifar.training.stages import EMA, build_optimizer, learning_rate


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_learns(tmp_path, optimizer):
    log = Logged()
    train(tmp_path, settings(optimizer=optimizer, weight_decay=0.01), log=log)
    assert log["train/loss", 9] < log["train/loss", 3]


def test_norms_and_biases_do_not_decay_and_lower_blocks_learn_more_slowly():
    network = build_network(resolve("digits"), CLASSES)
    config = settings(optimizer="adamw", weight_decay=0.1, layer_decay=0.5)
    weights = dict(network.named_parameters())
    optimizer = build_optimizer(weights, config, len(network.blocks))
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    assert len(groups) == len(weights)

    def group(name):
        return groups[id(weights[name])]

    block = "backbone.encoder.layers.encoder_layer_{}.mlp.0.weight"
    assert group("head.weight")["scale"] == 1.0
    assert [group(block.format(number))["scale"] for number in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert group("backbone.class_token")["scale"] == 0.5**4
    for name in weights:
        decays = name.endswith("weight") and weights[name].ndim > 1
        assert group(name)["weight_decay"] == (0.1 if decays else 0.0), name


def test_the_learning_rate_warms_up_and_then_decays_towards_zero():
    rates = [learning_rate(step, num_steps=100, warmup_steps=10, peak=1.0, schedule="cosine") for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("linear", 0.01)])
def test_constant_and_linear_schedules_end_at_their_last_value(schedule, last):
    assert learning_rate(99, num_steps=100, warmup_steps=0, peak=1.0, schedule=schedule) == pytest.approx(last)


def test_ema_follows_the_weights_and_is_swapped_in_and_out():
    weights = {"a": torch.zeros(3)}
    ema = EMA(weights, decay=0.5)
    weights["a"].fill_(1.0)
    ema.update(weights)
    first = 2 / 11  # the decay is warmed up
    torch.testing.assert_close(ema.weights["a"], torch.full((3,), 1 - first))
    with ema.swapped_into(weights):
        assert torch.equal(weights["a"], ema.weights["a"])
    assert torch.equal(weights["a"], torch.ones(3))
