"""The feature cache changes no loss, and its size is reported."""

import pytest
from support.training import CLASSES, Logged, assert_same_losses, losses, settings, shades

from vitcifar.model.network import build_network
from vitcifar.training.loop import fit


@pytest.mark.parametrize("layers", ["head", "2"])
@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_cached_and_uncached_training_give_the_same_losses(tmp_path, layers, augmentation):
    given = {"train_layers": layers, "augmentation": augmentation, "learning_rate": 1e-2}
    cached = losses(tmp_path / "cached", **given, num_views=3)  # as many views as epochs: each epoch its own
    assert_same_losses(cached, losses(tmp_path / "uncached", **given, num_views=0))


def notified(tmp_path, **given) -> list[str]:
    messages: list[str] = []
    config = settings(epochs=1, **given)
    network = build_network(config, CLASSES)
    fit(network, shades(8), shades(4, seed=1), config, log=Logged(), folder=tmp_path, notify=messages.append)
    return messages


def test_the_reported_size_of_the_cache_counts_all_features(tmp_path):
    gigabytes = (3 * 24 + 12) * 17 * 96 * 4 / 1e9
    (message,) = notified(tmp_path, train_layers="1", augmentation="flip", num_views=3, cache_memory=gigabytes)
    assert message.startswith("Frozen features are computed once, for 3 views of 24 training and 12 validation images")
    assert f"{gigabytes:.3f} GB" in message


def test_a_cache_larger_than_cache_memory_is_reported_and_not_made(tmp_path):
    (message,) = notified(tmp_path, train_layers="1", cache_memory=0.0001)
    assert "more than cache_memory (0.0001 GB)" in message and "every epoch" in message
    assert notified(tmp_path, train_layers="all") == []
    assert "blend pixels" in notified(tmp_path, train_layers="head", mixup=0.2)[0]
