"""The network: shapes, what trains, and its modes."""

import pytest
import torch
from support.networks import CLASSES, random_images, tiny

from vitcifar.errors import ConfigError, TrainingError
from vitcifar.model.network import (
    Released,
    build_network,
    check_network,
    count_parameters,
    count_trained,
    evaluation_mode,
    frozen_depth,
    set_trainable,
    weights_sha256,
)
from vitcifar.presets import resolve


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 8, 8), (7, 40, 50), (2, 300, 200), (1, 1, 1)])
def test_images_of_any_size_become_logits_and_probabilities(shape):
    network = tiny()
    network.temperature.fill_(2.0)
    images = torch.from_numpy(random_images(*shape))
    logits, probabilities, embedding = Released(network)(images)
    assert logits.shape == (shape[0], 3)
    torch.testing.assert_close(embedding, network.embed(images))
    torch.testing.assert_close(probabilities, torch.softmax(logits / 2, dim=1))


def test_splitting_the_forward_pass_after_any_block_does_not_change_the_logits():
    network = tiny()
    images = torch.from_numpy(random_images(2, 32, 32))
    logits = network(images)
    for depth in range(len(network.blocks) + 2):
        split = network.forward_head(network.forward_features(network.preprocess(images), depth), depth)
        torch.testing.assert_close(split, logits)
    torch.testing.assert_close(network.head(network.embed(images)), logits)


def test_the_embedding_equals_the_output_of_torchvisions_backbone():
    network = tiny()
    images = torch.from_numpy(random_images(2, 32, 32))
    torch.testing.assert_close(network.backbone(network.preprocess(images)), network.embed(images))


@pytest.mark.parametrize("layers", ["head", "2", "all"])
def test_only_the_layers_of_train_layers_require_gradients(layers):
    network = tiny(train_layers=layers)
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    last_blocks = {f"backbone.encoder.layers.encoder_layer_{block}" for block in (1, 2)}
    for name in dict(network.named_parameters()):
        in_last = name.rsplit(".", 2)[0] in last_blocks or any(name.startswith(block) for block in last_blocks)
        above = in_last or name.startswith("backbone.encoder.ln.")
        assert (name in trained) == (layers == "all" or name.startswith("head.") or (layers == "2" and above)), name
    trained_size = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    assert count_trained(network, layers, 0) == trained_size <= count_parameters(network)
    assert frozen_depth(network, layers) == {"head": 4, "2": 1, "all": None}[layers]


def test_more_trainable_blocks_than_exist_is_an_error():
    with pytest.raises(ConfigError, match="there are 3 blocks: type 1 to 3"):
        set_trainable(tiny(), "4")


def test_one_seed_gives_one_network_and_the_callers_random_state_does_not_change():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = (build_network(resolve("digits", seed=3), CLASSES) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert weights_sha256(first) == weights_sha256(second)
    assert weights_sha256(first) != weights_sha256(build_network(resolve("digits", seed=4), CLASSES))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_ends_in_the_former_mode_even_after_an_error(training):
    network = tiny().train(training)
    with pytest.raises(ZeroDivisionError), evaluation_mode(network) as inside:
        assert inside is network and not network.training and not network.blocks[0].training
        raise ZeroDivisionError
    assert network.training == network.blocks[0].training == training


def test_weights_that_cannot_be_read_are_an_error_before_the_network_is_built(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"not weights")
    for name in (str(tmp_path / "w.pt"), str(tmp_path / "other.pt")):
        with pytest.raises(TrainingError, match=r"w.pt is a text file|There is no file .*other.pt"):
            check_network(resolve("digits", weights=name), CLASSES)
    check_network(resolve("digits", weights="models:/vitcifar/1"), CLASSES)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"train_layers": "9"}, "but there are 3 blocks"),
        ({"image_size": 33}, "needs a multiple of 8"),
        ({"weights": "V9"}, "There are no pretrained weights"),
    ],
)
def test_a_network_that_cannot_be_built_is_an_error_without_building_it(setting, message):
    with pytest.raises(ConfigError, match=message):
        check_network(resolve("digits", **setting), ("a", "b"))
    check_network(resolve("digits"), ("a", "b"))
