"""Features on disk: the same bits as without, never damaged ones, bounded, shared by processes."""

import dataclasses
import multiprocessing
import os

import numpy as np
import pytest
import torch
from support.training import CLASSES, Logged, settings, shades
from torch import nn

from vitcifar.model.network import build_network, weights_sha256
from vitcifar.model.predict import predict_embeddings, predict_logits
from vitcifar.training import batches, feature_cache
from vitcifar.training.feature_cache import (
    Embedder,
    FeatureCache,
    network_key,
    open_feature_cache,
    read_features,
    write_features,
)
from vitcifar.training.loop import fit

HEAD = {"train_layers": "head", "learning_rate": 1e-2}


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "features", 10**9, notify=lambda message: None)


@pytest.fixture
def computed(monkeypatch):
    """The number of images of every computation of frozen features in training."""
    compute, counts = batches.compute_features, []

    def counted(network, loader, num_images, **given):
        counts.append(num_images)
        return compute(network, loader, num_images, **given)

    monkeypatch.setattr(batches, "compute_features", counted)
    return counts


def trained(folder, cache=None, weights_seed=7, **given):
    """The weights and everything that was logged; the backbone is the same for every seed."""
    config, log = settings(**{**HEAD, **given}), Logged()
    network = build_network(dataclasses.replace(config, seed=weights_seed), CLASSES)
    fit(network, shades(8), shades(4, seed=1), config, log=log, folder=folder, feature_cache=cache)
    return weights_sha256(network), {key: value for key, value in log.items() if not key[0].startswith("system/")}


@pytest.mark.parametrize("given", [{}, {"augmentation": "crop-flip", "num_views": 2}, {"train_layers": "1"}], ids=str)
def test_a_warm_cache_changes_no_bit_and_computes_nothing(tmp_path, cache, computed, given):
    without, cold, warm = (trained(tmp_path / str(n), kept, **given) for n, kept in enumerate((None, cache, cache)))
    assert without == cold == warm
    assert computed == [24, 12, 24, 12]


def test_seeds_share_the_features_of_images_that_are_not_augmented(tmp_path, cache, computed):
    for seed in range(2):
        trained(tmp_path / str(seed), cache, seed=seed)
    assert computed == [24, 12]
    for seed in range(2):
        trained(tmp_path / f"augmented {seed}", cache, seed=seed, augmentation="crop", num_views=1)
    assert computed == [24, 12, 24, 24]
    trained(tmp_path / "flipped", cache, seed=1, augmentation="flip", num_views=1)
    assert computed == [24, 12, 24, 24, 24]


def key(change=lambda network: None, depth=4, precision="fp32", **given):
    network = build_network(settings(**given), CLASSES)
    change(network)
    return network_key(network, depth=depth, precision=precision)


def flip_last_bit(network):
    with torch.no_grad():
        network.backbone.class_token.view(-1)[5:6].view(torch.int32).bitwise_xor_(1)


def use_relu(network):
    network.backbone.encoder.layers[0].mlp[1] = nn.ReLU()  # no weight says so


@pytest.mark.parametrize(
    "other",
    [
        {"change": flip_last_bit},
        {"change": use_relu},
        {"depth": 3},
        {"precision": "bf16"},
        {"image_size": 64},
    ],
    ids=["a bit of a weight", "a layer without weights", "depth", "precision", "image size"],
)
def test_what_decides_the_features_names_their_file(other):
    assert key() == key() and key(**other) != key()


def test_the_threads_name_the_file_and_what_lies_above_the_features_does_not(monkeypatch):
    def change_above(network):
        nn.init.ones_(network.head.weight)
        nn.init.ones_(network.blocks[2].mlp[0].weight)

    assert key(change_above, depth=2) == key(depth=2) and key(change_above) != key()
    before = key()
    monkeypatch.setattr(feature_cache, "numerics", lambda: {"num_threads": 64})
    assert key() != before


@pytest.mark.parametrize("position", [0, 9, 60, -1, "half", "empty"])
def test_a_damaged_file_is_computed_again_and_never_used(cache, position):
    values = torch.arange(24.0).reshape(1, 6, 4)
    assert torch.equal(cache.get(lambda: {"a": 1}, (1, 6, 4), lambda: values), values)
    (path,) = cache.folder.iterdir()
    whole = path.read_bytes()
    damaged = bytearray(whole)
    if isinstance(position, int):
        damaged[position] ^= 1
    path.write_bytes({"half": whole[: len(whole) // 2], "empty": b""}.get(position, bytes(damaged)))
    calls = []
    again = cache.get(lambda: {"a": 1}, (1, 6, 4), lambda: calls.append(1) or values)
    assert torch.equal(again, values) and calls == [1]
    assert path.read_bytes() == whole


def test_features_of_another_shape_are_computed_again(cache):
    path = cache.folder / "x"
    write_features(path, torch.zeros(2, 3))
    assert read_features(path, (3, 2)) is None and not path.exists()


def test_the_cache_takes_at_most_its_bytes_and_drops_what_was_not_used_for_longest(cache):
    cache = dataclasses.replace(cache, max_bytes=2 * 4 * 1000 + 1000)

    computed = []

    def get(name):
        cache.get(lambda: {"name": name}, (1000,), lambda: computed.append(name) or torch.zeros(1000))
        for path in cache.folder.iterdir():  # a minute passes
            os.utime(path, (path.stat().st_atime - 60, path.stat().st_mtime - 60))

    for name in "abac":
        get(name)
    assert len(list(cache.folder.iterdir())) == 2
    computed = []
    for name in "cab":
        cache.get(
            lambda name=name: {"name": name}, (1000,), lambda name=name: computed.append(name) or torch.zeros(1000)
        )
    assert computed == ["b"]


@pytest.mark.parametrize(
    ("limit", "folder", "said"), [(10, "features", "more than cache_disk"), (10**9, "file/features", "are not kept in")]
)
def test_what_cannot_be_kept_is_said_and_used(tmp_path, limit, folder, said):
    (tmp_path / "file").write_text("no folder")
    messages = []
    cache = FeatureCache(tmp_path / folder, limit, notify=messages.append)
    assert cache.get(lambda: {}, (9,), lambda: torch.ones(9)).sum() == 9
    assert len(messages) == 1 and said in messages[0]


def test_processes_that_write_read_and_delete_at_once_never_see_half_a_file(tmp_path):
    wanted = {name: torch.full((2000,), value) for name, value in (("a", 1.0), ("b", 2.0))}

    def work():
        for turn in range(60):
            for name, value in wanted.items():
                path = tmp_path / name
                found = read_features(path, (2000,))
                if found is None:
                    write_features(path, value)
                elif not torch.equal(found, value):
                    os._exit(1)
                if turn % 7 == 0:
                    path.unlink(missing_ok=True)
        os._exit(0)

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "b"}


def test_predictions_with_a_warm_cache_are_the_bits_of_those_without(cache):
    config = settings(train_layers="head")
    network = build_network(config, CLASSES)
    nn.init.normal_(network.head.weight)
    without, cold, warm = (Embedder(network, config, kept).predict(shades(4)) for kept in (None, cache, cache))
    for one, two, three in zip(without, cold, warm, strict=True):
        assert np.array_equal(one, two) and np.array_equal(one, three)
    assert np.allclose(without[0], network(torch.from_numpy(shades(4).images)).detach(), atol=1e-5)
    assert np.array_equal(without[1], predict_embeddings(network, shades(4).images, 8))
    for kept in (None, cache, cache):
        assert np.array_equal(Embedder(network, config, kept).logits([*shades(4).images]), without[0])


def test_a_pixel_and_the_batch_size_name_the_file_of_embeddings_too(cache):
    network, images = build_network(settings(), CLASSES), shades(2).images
    embedder = Embedder(network, settings(train_layers="head"), cache)
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    for one, number in ((images, 1), (images.copy(), 1), (changed, 2)):
        embedder.logits(one)
        assert len([*cache.folder.iterdir()]) == number
    Embedder(network, settings(train_layers="head", batch_size=4), cache).logits(images)
    assert len([*cache.folder.iterdir()]) == 3


def test_a_trained_backbone_keeps_no_file_of_logits(cache):
    network, config = build_network(settings(), CLASSES), settings(train_layers="1")
    assert np.array_equal(
        Embedder(network, config, cache).logits(shades(2).images), predict_logits(network, shades(2).images)
    )
    assert not cache.folder.exists()


def test_no_cache_on_disk_is_a_setting():
    assert open_feature_cache(settings(cache_disk=0.0)) is None
    assert open_feature_cache(settings(cache_disk=2.0)).max_bytes == 2 * 10**9
