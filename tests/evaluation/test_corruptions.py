"""The 15 corruptions: shape, determinism, severity, and the known effect of each."""

import numpy as np
import pytest
from support.textures import textured_image

from vitcifar.evaluation.corruptions import CORRUPTIONS, corrupt

NAMES = tuple(CORRUPTIONS)


def distance(one, other):
    return float(np.abs(one.astype(float) - other).mean())


def test_there_are_the_fifteen_corruptions_of_the_paper_with_five_levels_each():
    assert len(NAMES) == 15 and all(len(levels) == 5 for _, levels in CORRUPTIONS.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_keeps_shape_and_type_and_changes_the_image(name):
    for height, width in ((32, 32), (8, 8), (40, 56), (100, 33), (1, 1), (2, 90)):
        image = textured_image(height, width)
        for severity in (1, 5):
            result = corrupt(image, name, severity)
            assert result.shape == image.shape and result.dtype == np.uint8
    assert distance(corrupt(textured_image(), name, 3), textured_image()) > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_is_the_same_for_the_same_seed_and_does_not_change_its_input(name):
    image = textured_image()
    before = image.copy()
    assert (corrupt(image, name, 4, seed=7) == corrupt(image, name, 4, seed=7)).all()
    assert (image == before).all()


def test_a_corruption_is_the_same_in_every_process():
    grey = np.full((2, 2, 3), 128, np.uint8)
    assert corrupt(grey, "gaussian_noise", 3, seed=5)[0, 0].tolist() == [108, 126, 122]


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "snow", "frost", "fog", "motion_blur"])
def test_another_seed_gives_another_corruption(name):
    assert (corrupt(textured_image(), name, 4, seed=7) != corrupt(textured_image(), name, 4, seed=8)).any()


# As in the paper, the distance of these three does not grow with the severity: glass blur shuffles equally far at each
# level, elastic trades one motion for another, and frost darkens the image as its ice grows.
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"glass_blur", "elastic_transform", "frost"}))
def test_a_higher_severity_is_further_from_the_image(name):
    images = [textured_image(seed=seed) for seed in range(12)]
    distances = [np.mean([distance(corrupt(i, name, s, seed=n), i) for n, i in enumerate(images)]) for s in (1, 3, 5)]
    assert distances == sorted(distances) and distances[2] > 1.2 * distances[0]


def test_gaussian_noise_has_the_standard_deviation_of_the_paper():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = corrupt(grey, "gaussian_noise", 5) / 255 - 128 / 255
    assert noise.std() == pytest.approx(0.10, rel=0.02) and abs(noise.mean()) < 0.002


def test_shot_noise_has_poisson_variance():
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert (corrupt(grey, "shot_noise", 5) / 255).var() == pytest.approx(128 / 255 / 50, rel=0.03)


def test_impulse_noise_changes_the_fraction_of_the_paper_half_to_black_half_to_white():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = corrupt(grey, "impulse_noise", 5)
    assert (noisy == 0).mean() == pytest.approx(0.035, rel=0.1) == (noisy == 255).mean()
    assert set(np.unique(noisy)) == {0, 128, 255}


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "glass_blur"])
def test_a_blur_keeps_a_flat_image_and_removes_detail_from_others(name):
    flat = np.full((32, 32, 3), (10, 128, 250), np.uint8)
    assert (corrupt(flat, name, 5) == flat).all()
    detail = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert corrupt(detail, name, 5).std() < 0.75 * detail.std()


def test_contrast_keeps_the_mean_and_scales_the_standard_deviation():
    image = textured_image()
    result = corrupt(image, "contrast", 5)
    assert result.mean(axis=(0, 1)) == pytest.approx(image.mean(axis=(0, 1)), abs=0.5)
    assert result.std(axis=(0, 1)) == pytest.approx(0.15 * image.std(axis=(0, 1)), rel=0.05)


def test_brightness_raises_the_value_and_keeps_the_hue():
    image = np.full((4, 4, 3), (100, 50, 0), np.uint8)
    assert corrupt(image, "brightness", 3)[0, 0].tolist() == [138, 69, 0]  # 100 + 0.15 * 255, same ratios
    assert corrupt(np.zeros((4, 4, 3), np.uint8), "brightness", 5)[0, 0].tolist() == [76, 76, 76]


def test_frost_and_snow_brighten_an_image_and_fog_lowers_its_contrast():
    dark = (textured_image() // 3).astype(np.uint8)
    for name in ("frost", "snow"):
        assert corrupt(dark, name, 5).mean() > dark.mean() + 20
    assert corrupt(textured_image(), "fog", 5).std() < textured_image().std()


def test_pixelate_leaves_few_different_rows():
    image = textured_image()
    assert len(np.unique(corrupt(image, "pixelate", 5), axis=0)) <= 20 < len(np.unique(image, axis=0))
