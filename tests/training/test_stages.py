"""Stages: early stopping, head first, LoRA."""

import pytest
import torch
from support.training import CLASSES, settings, train

from vitcifar.errors import ConfigError
from vitcifar.model.network import build_network, count_trained, weights_sha256
from vitcifar.training import checkpoint


def test_training_stops_early_when_validation_does_not_improve(tmp_path):
    _, outcome = train(tmp_path, settings(epochs=30, patience=2, learning_rate=0.0))
    assert outcome.best_epoch == 1 and outcome.num_epochs == 3


def test_the_head_trains_first_and_then_the_rest(tmp_path):
    given = {"head_epochs": 2, "epochs": 2, "train_layers": "all"}
    network, outcome = train(tmp_path, settings(**given))
    assert outcome.num_epochs == 4
    start = build_network(settings(), CLASSES)

    class HeadIsTrained(Exception):
        pass

    def stop(step, metrics):
        if step == 7:
            raise HeadIsTrained

    with pytest.raises(HeadIsTrained):
        train(tmp_path / "stopped", settings(**given), log=stop)
    state = checkpoint.load(tmp_path / "stopped" / checkpoint.LAST)["weights"]
    backbone = {name: weight for name, weight in start.named_parameters() if name.startswith("backbone.")}
    assert all(torch.equal(state[name], weight) for name, weight in backbone.items())
    assert not torch.equal(state["head.weight"], start.head.weight)
    assert weights_sha256(network.backbone) != weights_sha256(start.backbone)


def test_lora_changes_only_the_attention_projections_and_the_head(tmp_path):
    config = settings(lora_rank=2, train_layers="2", learning_rate=1e-2)
    network, outcome = train(tmp_path, config)
    untrained = build_network(config, CLASSES)
    assert count_trained(untrained, "2", 2) == outcome.num_trained_parameters
    start = untrained.state_dict()
    assert outcome.num_trained_parameters == 2 * (2 * (3 * 96 + 96) + 2 * (96 + 96)) + 3 * 96 + 3
    changed = {name for name, weight in network.state_dict().items() if not torch.equal(weight, start[name])}
    attention = {
        f"backbone.encoder.layers.encoder_layer_{block}.self_attention.{name}"
        for block in (1, 2)
        for name in ("in_proj_weight", "out_proj.weight")
    }
    assert changed == attention | {"head.weight", "head.bias"}


def test_lora_without_trainable_blocks_is_rejected():
    with pytest.raises(ConfigError, match="train_layers is head"):
        settings(lora_rank=2, train_layers="head")
