"""Augmentation, mixup and CutMix depend on their key alone."""

import numpy as np
import pytest
import torch
from support.training import Logged, settings, shades, train

from vitcifar.training.batches import Mix, augment, augmentation_sheet, sample_mix

AUGMENTATIONS = ("crop", "flip", "crop-flip", "trivial", "rand")


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmented_image_depends_on_its_key_alone(name):
    image = shades(1, size=20).images[1][:, :14]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second = (augment(image, name, (0, 1, 2)) for _ in range(2))
    assert first.dtype == np.uint8 and first.shape == image.shape
    assert np.array_equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    others = [augment(image, name, (0, epoch, 2)) for epoch in range(20)]
    assert any(not np.array_equal(first, other) for other in others)
    assert augment(image, "none", (0, 1, 2)) is image


def test_flip_only_mirrors():
    image = shades(1).images[0]
    for epoch in range(20):
        varied = augment(image, "flip", (0, epoch, 0))
        assert np.array_equal(varied, image) or np.array_equal(varied, image[:, ::-1])


def test_crop_shifts_an_image_by_at_most_an_eighth_and_mirrors_its_border():
    image = shades(1, size=16).images[0]
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="symmetric")
    crops = [padded[top : top + 16, left : left + 16] for top in range(5) for left in range(5)]
    found = {
        next(number for number, crop in enumerate(crops) if np.array_equal(augment(image, "crop", (0, epoch, 0)), crop))
        for epoch in range(40)
    }
    assert len(found) > 10


def test_the_sheet_shows_an_image_beside_its_augmentations():
    data = shades(4)
    flipped, unchanged = (np.array(augmentation_sheet(data, name, seed=0, num_images=3)) for name in ("flip", "none"))
    assert flipped.shape == unchanged.shape
    assert not np.array_equal(flipped, unchanged)
    taller = augmentation_sheet(data, "flip", seed=0, num_images=4)
    assert taller.height > flipped.shape[0]


@pytest.mark.parametrize("augmentation", ["trivial", "rand"])
def test_training_with_torchvisions_augmentations_learns(tmp_path, augmentation):
    log = Logged()
    train(tmp_path, settings(augmentation=augmentation), log=log)
    assert log["train/loss", 9] < log["train/loss", 3]


def test_mixup_blends_and_cutmix_pastes_by_the_sampled_weight():
    ones, zeros = torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    torch.testing.assert_close(Mix(0.3, None)(ones, zeros), torch.full((2, 3, 8, 8), 0.3))
    for step in range(30):
        mix = sample_mix(settings(cutmix=1.0), (0, 1, step, 1), image_size=8)
        assert mix and mix.box and 0 <= mix.weight <= 1
        assert mix(ones, zeros).mean().item() == pytest.approx(mix.weight)
    assert sample_mix(settings(), (0, 1, 1, 1), image_size=8) is None


def test_mixup_and_cutmix_alternate_when_both_are_on():
    mixes = [sample_mix(settings(mixup=0.2, cutmix=1.0), (0, 1, step, 1), image_size=8) for step in range(40)]
    assert 5 < sum(mix is not None and mix.box is None for mix in mixes) < 35
