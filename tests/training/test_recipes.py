"""What a practitioner varies: each setting does what it says, and nothing else."""

import numpy as np
import pytest
import torch
from support.training import CLASSES, Logged, kill_at, settings, shades, train

from vitcifar.config import resolve
from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import ConfigError
from vitcifar.model.lora import add_lora, merge_lora
from vitcifar.model.network import build_network, weights_sha256
from vitcifar.model.predict import predict_logits
from vitcifar.training import checkpoint
from vitcifar.training.augmentation import Mix, augment, augmentation_sheet, sample_mix
from vitcifar.training.batches import plan_epoch
from vitcifar.training.loop import fit
from vitcifar.training.optimizer import EMA, build_optimizer
from vitcifar.training.precision import choose_precision

CPU = torch.device("cpu")
AUGMENTATIONS = ("crop", "flip", "crop-flip", "trivial", "rand")


def losses(tmp_path, **given) -> dict:
    log = Logged()
    train(tmp_path, settings(**given), log=log)
    return {key: value for key, value in log.items() if key[0] in ("step/loss", "validation/loss")}


def assert_same_losses(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value == pytest.approx(other[key], abs=1e-5), key


# --- frozen parts, computed once


@pytest.mark.parametrize("layers", ["head", "2"])
@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_cached_and_uncached_training_give_the_same_losses(tmp_path, layers, augmentation):
    given = {"train_layers": layers, "augmentation": augmentation, "learning_rate": 1e-2}
    cached = losses(tmp_path / "cached", **given, num_views=3)  # as many views as epochs: each epoch its own
    assert_same_losses(cached, losses(tmp_path / "uncached", **given, num_views=0))


def heard(tmp_path, **given) -> list[str]:
    sentences: list[str] = []
    config = settings(epochs=1, **given)
    network = build_network(config, CLASSES)
    fit(network, shades(8), shades(4, seed=1), config, log=Logged(), folder=tmp_path, notify=sentences.append)
    return sentences


def test_the_caches_size_is_said_and_counts_all_that_is_kept(tmp_path):
    gigabytes = (3 * 24 + 12) * 17 * 96 * 4 / 1e9
    (sentence,) = heard(tmp_path, train_layers="1", augmentation="flip", num_views=3, cache_memory=gigabytes)
    assert sentence.startswith("Frozen parts are computed once, for 3 views of 24 training and 12 validation images")
    assert f"{gigabytes:.3f} GB" in sentence


def test_a_cache_that_would_not_fit_is_said_and_left_out(tmp_path):
    (sentence,) = heard(tmp_path, train_layers="1", cache_memory=0.0001)
    assert "more than cache_memory 0.0001" in sentence and "every epoch" in sentence
    assert heard(tmp_path, train_layers="all") == []
    assert "blend pixels" in heard(tmp_path, train_layers="head", mixup=0.2)[0]


# --- batches


def test_small_batches_put_together_equal_one_big_one(tmp_path):
    given = {"batch_size": 12, "mixup": 0.4, "cutmix": 0.4, "augmentation": "crop"}
    whole = losses(tmp_path / "whole", **given)
    assert_same_losses(whole, losses(tmp_path / "parts", **given, accumulation_steps=4))


def test_every_picture_is_taken_once_an_epoch_however_it_is_split():
    for num_processes in (1, 2, 3):
        taken = []
        for rank in range(num_processes):
            plan = plan_epoch(23, batch_size=8, num_micro_batches=2, key=(0, 1), rank=rank, num_processes=num_processes)
            assert [batch.size for batch in plan] == [8, 8, 7]
            taken += [index for batch in plan for indices, _ in batch.micro_batches for index in indices]
        assert sorted(taken) == list(range(23))


def test_the_order_differs_between_epochs_and_seeds():
    orders = [
        tuple(
            plan_epoch(50, batch_size=50, num_micro_batches=1, key=key, rank=0, num_processes=1)[0].micro_batches[0][0]
        )
        for key in ((0, 1), (0, 2), (1, 1), (1, 2))
    ]
    assert len(set(orders)) == 4


# --- augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmented_picture_depends_on_its_key_alone(name):
    image = shades(1, size=20).images[1][:, :14]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, same = (augment(image, name, (0, 1, 2)) for _ in range(2))
    assert one.dtype == np.uint8 and one.shape == image.shape
    assert np.array_equal(one, same)
    assert torch.equal(torch.random.get_rng_state(), before)
    others = [augment(image, name, (0, epoch, 2)) for epoch in range(20)]
    assert any(not np.array_equal(one, other) for other in others)
    assert augment(image, "none", (0, 1, 2)) is image


def test_flip_only_mirrors():
    image = shades(1).images[0]
    for epoch in range(20):
        varied = augment(image, "flip", (0, epoch, 0))
        assert np.array_equal(varied, image) or np.array_equal(varied, image[:, ::-1])


def test_the_sheet_shows_a_row_for_every_picture():
    sheet = augmentation_sheet(shades(4), "trivial", seed=0, num_images=3)
    assert sheet.width > 500 and sheet.height > 3 * 70


@pytest.mark.parametrize("augmentation", ["trivial", "rand"])
def test_training_with_torchvisions_augmentations_learns(tmp_path, augmentation):
    log = Logged()
    train(tmp_path, settings(augmentation=augmentation), log=log)
    assert log["train/loss", 9] < log["train/loss", 3]


# --- mixing


def test_mixup_blends_and_cutmix_pastes_by_the_share_it_says():
    ones, zeros = torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    torch.testing.assert_close(Mix(0.3, None)(ones, zeros), torch.full((2, 3, 8, 8), 0.3))
    for step in range(30):
        mix = sample_mix(settings(cutmix=1.0), (0, 1, step, 1), image_size=8)
        assert mix and mix.box and 0 <= mix.weight <= 1
        assert mix(ones, zeros).mean().item() == pytest.approx(mix.weight)
    assert sample_mix(settings(), (0, 1, 1, 1), image_size=8) is None


def test_both_mixes_take_turns():
    mixes = [sample_mix(settings(mixup=0.2, cutmix=1.0), (0, 1, step, 1), image_size=8) for step in range(40)]
    assert 5 < sum(mix is not None and mix.box is None for mix in mixes) < 35


@pytest.mark.parametrize("given", [{"mixup": 0.2}, {"cutmix": 1.0}, {"label_smoothing": 0.1}, {"clip_norm": 0.1}])
def test_recipes_learn_and_are_the_same_twice(tmp_path, given):
    log = Logged()
    network, _ = train(tmp_path / "one", settings(**given), log=log)
    assert log["validation/loss", 9] < log["validation/loss", 3]
    assert weights_sha256(train(tmp_path / "two", settings(**given))[0]) == weights_sha256(network)
    assert weights_sha256(train(tmp_path / "plain")[0]) != weights_sha256(network)


# --- averages, stages, early stopping


def test_the_average_follows_the_weights():
    weights = {"a": torch.zeros(3)}
    average = EMA(weights, decay=0.5)
    weights["a"].fill_(1.0)
    average.update(weights)
    first = 2 / 11  # a young average forgets faster
    torch.testing.assert_close(average.weights["a"], torch.full((3,), 1 - first))
    with average.swapped_into(weights):
        assert torch.equal(weights["a"], average.weights["a"])
    assert torch.equal(weights["a"], torch.ones(3))


def test_the_average_is_kept_when_it_is_better_on_validation(tmp_path):
    log = Logged()
    _, outcome = train(tmp_path, settings(ema_decay=0.9, learning_rate=0.02, schedule="constant"), log=log)
    candidates = [
        (log[f"validation/{kind}accuracy", step], -log[f"validation/{kind}loss", step])
        for step in (3, 6, 9)
        for kind in ("", "ema_")
    ]
    best = (outcome.best_metrics["validation/accuracy"], -outcome.best_metrics["validation/loss"])
    assert best == max(candidates)


def test_training_stops_when_nothing_gets_better(tmp_path):
    log = Logged()
    _, outcome = train(tmp_path, settings(epochs=30, patience=2, learning_rate=0.0), log=log)
    assert outcome.best_epoch == 1 and outcome.num_epochs == 3


def test_the_head_trains_first_and_then_the_rest(tmp_path):
    given = {"head_epochs": 2, "epochs": 2, "train_layers": "all"}
    network, outcome = train(tmp_path, settings(**given))
    assert outcome.num_epochs == 4
    start = build_network(settings(), CLASSES)

    class HeadIsDone(Exception):
        pass

    def stop(step, metrics):
        if step == 7:
            raise HeadIsDone

    with pytest.raises(HeadIsDone):
        train(tmp_path / "stopped", settings(**given), log=stop)
    state = checkpoint.load(tmp_path / "stopped" / checkpoint.LAST)["weights"]
    backbone = {name: weight for name, weight in start.named_parameters() if name.startswith("backbone.")}
    assert all(torch.equal(state[name], weight) for name, weight in backbone.items())
    assert not torch.equal(state["head.weight"], start.head.weight)
    assert weights_sha256(network.backbone) != weights_sha256(start.backbone)


# --- LoRA


def test_lora_starts_as_no_change_and_merges_into_the_plain_shape():
    network = build_network(resolve("digits"), CLASSES)
    torch.nn.init.normal_(network.head.weight)
    images, names = shades(2).images, list(network.state_dict())
    before = predict_logits(network, images)
    add_lora(network.blocks, 4, seed=0)
    np.testing.assert_allclose(predict_logits(network, images), before, atol=1e-5)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(".up"):
                weight.normal_(std=0.1)
    changed = predict_logits(network, images)
    assert np.abs(changed - before).max() > 0.01
    merge_lora(network)
    np.testing.assert_allclose(predict_logits(network, images), changed, atol=1e-4)
    assert sorted(network.state_dict()) == sorted(names)


def test_lora_trains_few_weights_and_changes_only_the_attention(tmp_path):
    config = settings(lora_rank=2, train_layers="2", learning_rate=1e-2)
    network, outcome = train(tmp_path, config)
    start = build_network(config, CLASSES).state_dict()
    assert outcome.num_trained_parameters == 2 * (2 * (3 * 96 + 96) + 2 * (96 + 96)) + 3 * 96 + 3
    changed = {name for name, weight in network.state_dict().items() if not torch.equal(weight, start[name])}
    attention = {
        f"backbone.encoder.layers.encoder_layer_{block}.self_attention.{name}"
        for block in (1, 2)
        for name in ("in_proj_weight", "out_proj.weight")
    }
    assert changed == attention | {"head.weight", "head.bias"}


def test_lora_of_the_head_alone_is_refused():
    with pytest.raises(ConfigError, match="train_layers is head"):
        settings(lora_rank=2, train_layers="head")


# --- optimizers and precision


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


def test_bf16_trains_to_nearly_the_same_loss(tmp_path):
    full = losses(tmp_path / "fp32", precision="fp32")
    half = losses(tmp_path / "bf16", precision="bf16")
    assert full != half
    assert half["validation/loss", 9] == pytest.approx(full["validation/loss", 9], rel=0.1)


def test_auto_takes_fp32_for_narrow_networks_and_fp16_needs_a_gpu():
    assert choose_precision(settings(), CPU, hidden_size=96) == "fp32"
    assert choose_precision(settings(precision="bf16"), CPU, hidden_size=96) == "bf16"
    with pytest.raises(ConfigError, match="for a GPU"):
        choose_precision(settings(precision="fp16"), CPU, hidden_size=768)


# --- resuming any of it


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ({"num_workers": 2, "augmentation": "trivial", "mixup": 0.2}, 5),
        ({"head_epochs": 1, "ema_decay": 0.9, "optimizer": "adamw", "weight_decay": 0.1}, 5),
        ({"lora_rank": 2, "train_layers": "2", "optimizer": "sgd", "augmentation": "crop-flip"}, 2),
    ],
)
def test_killed_and_resumed_equals_never_killed_with_every_recipe(tmp_path, given, step):
    whole, again = Logged(), Logged()
    network, outcome = train(tmp_path / "whole", settings(**{**given, "num_workers": 0}), log=whole)
    kill_at(step, tmp_path / "killed", **given)
    path = tmp_path / "killed" / checkpoint.LAST
    resumed, same = train(tmp_path / "killed", settings(**given), resume=path, log=again)
    assert weights_sha256(resumed) == weights_sha256(network)
    assert again == {key: value for key, value in whole.items() if key[1] > (step - 1) // 3 * 3}
    assert same == outcome


def test_mixed_sizes_train_with_everything_switched_on(tmp_path):
    data = shades(8)
    images = [image[: 5 + place % 4] for place, image in enumerate(data.images)]
    mixed = ImageDataset(images=images, labels=data.labels, class_names=CLASSES, ids=data.ids)
    given = {"augmentation": "crop-flip", "mixup": 0.2, "cutmix": 1.0, "num_workers": 2, "accumulation_steps": 2}
    _, outcome = train(tmp_path, settings(**given), dataset=mixed)
    assert outcome.num_epochs == 3
