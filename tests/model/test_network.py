"""The network: shapes, preprocessing, what trains, where weights come from."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vitcifar.config import resolve
from vitcifar.errors import ConfigError, TrainingError
from vitcifar.model.network import (
    Classifier,
    Released,
    build_network,
    count_parameters,
    frozen_depth,
    set_trainable,
    weights_sha256,
)
from vitcifar.model.predict import predict_logits
from vitcifar.model.weights import download

CLASSES = ("ant", "bee", "cat")


def tiny(**settings) -> Classifier:
    """vit_tiny with a head that is not zero."""
    network = build_network(resolve("digits", **settings), CLASSES)
    torch.manual_seed(1)
    torch.nn.init.normal_(network.head.weight)
    return network.eval()


def some_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 8, 8), (7, 40, 50), (2, 300, 200), (1, 1, 1)])
def test_pictures_of_any_size_become_logits_and_probabilities(shape):
    network = tiny()
    network.temperature.fill_(2.0)
    logits, probabilities = Released(network)(torch.from_numpy(some_images(*shape)))
    assert logits.shape == (shape[0], 3)
    torch.testing.assert_close(probabilities, torch.softmax(logits / 2, dim=1))


def test_a_list_of_mixed_sizes_gives_each_picture_its_own_logits():
    network = tiny()
    mixed = [some_images(8, 8), some_images(50, 30), some_images(8, 8, seed=1)]
    together = predict_logits(network, mixed, 2)
    alone = np.concatenate([predict_logits(network, image[None]) for image in mixed])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_cutting_the_network_after_any_block_changes_nothing():
    network = tiny()
    images = torch.from_numpy(some_images(2, 32, 32))
    whole = network(images)
    for depth in range(len(network.blocks) + 2):
        cut = network.forward_head(network.forward_features(network.preprocess(images), depth), depth)
        torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(network.head(network.embed(images)), whole)


def test_our_forward_equals_torchvisions():
    network = tiny()
    images = torch.from_numpy(some_images(2, 32, 32))
    torch.testing.assert_close(network.backbone(network.preprocess(images)), network.embed(images))


@pytest.mark.parametrize("layers", ["head", "2", "all"])
def test_only_what_should_train_asks_for_gradients(layers):
    network = tiny(train_layers=layers)
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    last_blocks = {f"backbone.encoder.layers.encoder_layer_{block}" for block in (1, 2)}
    for name in dict(network.named_parameters()):
        in_last = name.rsplit(".", 2)[0] in last_blocks or any(name.startswith(block) for block in last_blocks)
        above = in_last or name.startswith("backbone.encoder.ln.")
        assert (name in trained) == (layers == "all" or name.startswith("head.") or (layers == "2" and above)), name
    assert 0 < count_parameters(network, trained=True) <= count_parameters(network)
    assert frozen_depth(network, layers) == {"head": 4, "2": 1, "all": None}[layers]


def test_more_blocks_than_there_are_is_a_clear_error():
    with pytest.raises(ConfigError, match="there are 3 blocks: type 1 to 3"):
        set_trainable(tiny(), "4")


def test_one_seed_makes_one_network_and_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, same = (build_network(resolve("digits", seed=3), CLASSES) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert weights_sha256(one) == weights_sha256(same)
    assert weights_sha256(one) != weights_sha256(build_network(resolve("digits", seed=4), CLASSES))


def test_an_image_size_that_patches_do_not_fit_names_one_that_they_do():
    with pytest.raises(ConfigError, match="multiple of 8, such as 32"):
        tiny(image_size=33)


def test_unknown_weights_list_the_names_of_that_architecture():
    with pytest.raises(ConfigError, match="IMAGENET1K_V1, IMAGENET1K_SWAG_E2E_V1, IMAGENET1K_SWAG_LINEAR_V1, none"):
        build_network(resolve("cifar10", weights="IMAGENET21K"), CLASSES)
    with pytest.raises(ConfigError, match="no trained weights 'IMAGENET1K_V1' for vit_tiny"):
        tiny(weights="IMAGENET1K_V1")


def test_a_state_dict_from_a_file_restores_the_network(tmp_path):
    network = tiny(seed=5)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    again = build_network(resolve("digits", weights=str(tmp_path / "weights.pt")), CLASSES)
    assert weights_sha256(again) == weights_sha256(network)


def test_torchvisions_own_names_are_understood_and_another_head_is_replaced_and_said(tmp_path):
    source = tiny(seed=5)
    state = {name.removeprefix("backbone."): value for name, value in source.backbone.named_parameters(prefix="")}
    torch.save({**state, "heads.head.weight": torch.ones(9, 96), "heads.head.bias": torch.ones(9)}, tmp_path / "w.pt")
    heard: list[str] = []
    config = resolve("digits", weights=str(tmp_path / "w.pt"))
    network = build_network(config, CLASSES, notify=heard.append)
    assert torch.equal(network.backbone.class_token, source.backbone.class_token)
    assert network.head.weight.shape == (3, 96)
    assert "of 9 classes" in heard[0] and "of 3 classes" in heard[0]


def test_positions_are_interpolated_to_another_image_size(tmp_path):
    torch.save(tiny(seed=5).state_dict(), tmp_path / "w.pt")
    heard: list[str] = []
    network = build_network(
        resolve("digits", weights=str(tmp_path / "w.pt"), image_size=64), CLASSES, notify=heard.append
    )
    assert network(torch.from_numpy(some_images(2, 64, 64))).shape == (2, 3)
    assert heard == ["The positions of 4 x 4 patches are interpolated to 8 x 8."]


def test_a_release_gives_its_weights_and_starts_with_a_new_temperature():
    source = tiny(seed=5)
    source.temperature.fill_(3.0)
    asked: list[str] = []

    def load_release(name: str):
        asked.append(name)
        return source.state_dict()

    network = build_network(resolve("digits", weights="models:/vitcifar/3"), CLASSES, load_release=load_release)
    assert asked == ["models:/vitcifar/3"]
    assert torch.equal(network.head.weight, source.head.weight)
    assert network.temperature == 1.0


def test_wrong_shapes_say_expected_and_got(tmp_path):
    state = tiny().state_dict()
    torch.save({**state, "backbone.class_token": torch.zeros(1, 1, 7)}, tmp_path / "w.pt")
    with pytest.raises(TrainingError, match=r"class_token: expected \(1, 1, 96\), got \(1, 1, 7\)"):
        tiny(weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut off"])
def test_a_broken_weights_file_is_one_sentence(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(TrainingError, match="cannot be read as a state dict"):
        tiny(weights=str(tmp_path / "w.pt"))


class Evil:
    """Would make a file, were it ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_weights_file_is_not_run(tmp_path):
    torch.save({"head.weight": Evil(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(TrainingError):
        tiny(weights=str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()


class Unreachable:
    """Weights whose host refuses: nothing listens on port 9 here."""

    name = "IMAGENET1K_V1"
    url = "http://127.0.0.1:9/vit_b_16-c867db91.pth"


def test_weights_that_cannot_be_had_stop_within_seconds_and_say_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(TrainingError) as caught:
        download(Unreachable, "vit_b_16")  # type: ignore[arg-type]
    assert time.perf_counter() - start < 6
    assert "--preset digits, --weights none, or put the file at" in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / "vit_b_16-c867db91.pth") in str(caught.value)


def test_weights_in_torch_hubs_cache_are_used_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints" / "vit_b_16-c867db91.pth"
    cache.parent.mkdir(parents=True)
    torch.save({"class_token": torch.ones(1)}, cache)
    assert download(Unreachable, "vit_b_16") == {"class_token": torch.ones(1)}  # type: ignore[arg-type]
