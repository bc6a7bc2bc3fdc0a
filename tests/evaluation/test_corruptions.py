"""The 15 corruptions: shape, repeatability, severity, and what each is known to do; and the score over them."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.corruptions import CORRUPTIONS, corrupt
from vitcifar.evaluation.robustness import Robustness, evaluate_robustness

NAMES = tuple(CORRUPTIONS)


def some_image(height=32, width=32, seed=0):
    """Smooth shapes of full contrast with some texture, like a photograph."""
    random = np.random.default_rng(seed)
    smooth = gaussian_filter(random.normal(size=(height, width, 3)), (max(height / 8, 0.5), max(width / 8, 0.5), 0.3))
    smooth = (smooth - smooth.min()) / max(float(np.ptp(smooth)), 1e-9)
    return np.round(255 * np.clip(smooth + random.normal(size=smooth.shape) * 0.02, 0, 1)).astype(np.uint8)


def distance(one, other):
    return float(np.abs(one.astype(float) - other).mean())


def some_images(num=20):
    images = np.stack([some_image(seed=seed) for seed in range(num)])
    return ImageDataset(
        images=images, labels=np.arange(num) % 2, class_names=("a", "b"), ids=tuple(map(str, range(num)))
    )


def test_there_are_the_fifteen_corruptions_of_the_paper_with_five_levels_each():
    assert len(NAMES) == 15 and all(len(levels) == 5 for _, levels in CORRUPTIONS.values())


@pytest.mark.parametrize("name", NAMES)
def test_corruption_keeps_shape_and_type_and_changes_the_picture(name):
    for height, width in ((32, 32), (8, 8), (40, 56), (100, 33), (1, 1), (2, 90)):
        image = some_image(height, width)
        for severity in (1, 5):
            result = corrupt(image, name, severity)
            assert result.shape == image.shape and result.dtype == np.uint8
    assert distance(corrupt(some_image(), name, 3), some_image()) > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_corruption_is_the_same_for_the_same_seed_and_leaves_its_input_alone(name):
    image = some_image()
    before = image.copy()
    assert (corrupt(image, name, 4, seed=7) == corrupt(image, name, 4, seed=7)).all()
    assert (image == before).all()


def test_corruption_is_the_same_in_every_process():
    grey = np.full((2, 2, 3), 128, np.uint8)
    assert corrupt(grey, "gaussian_noise", 3, seed=5)[0, 0].tolist() == [108, 126, 122]


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "snow", "frost", "fog", "motion_blur"])
def test_another_seed_gives_another_corruption(name):
    assert (corrupt(some_image(), name, 4, seed=7) != corrupt(some_image(), name, 4, seed=8)).any()


# In the paper too, glass blur shuffles as far at each level, elastic trades one motion for another, and frost darkens
# the image as its ice grows, so that the distance says little there.
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"glass_blur", "elastic_transform", "frost"}))
def test_more_severe_is_further_from_the_picture(name):
    images = [some_image(seed=seed) for seed in range(12)]
    away = [np.mean([distance(corrupt(i, name, s, seed=n), i) for n, i in enumerate(images)]) for s in (1, 3, 5)]
    assert away == sorted(away) and away[2] > 1.2 * away[0]


def test_gaussian_noise_has_the_deviation_of_the_paper():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = corrupt(grey, "gaussian_noise", 5) / 255 - 128 / 255
    assert noise.std() == pytest.approx(0.10, rel=0.02) and abs(noise.mean()) < 0.002


def test_shot_noise_has_the_variance_of_photons():
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert (corrupt(grey, "shot_noise", 5) / 255).var() == pytest.approx(128 / 255 / 50, rel=0.03)


def test_impulse_noise_hits_the_share_of_the_paper_half_black_half_white():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = corrupt(grey, "impulse_noise", 5)
    assert (noisy == 0).mean() == pytest.approx(0.035, rel=0.1) == (noisy == 255).mean()
    assert set(np.unique(noisy)) == {0, 128, 255}


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "glass_blur"])
def test_blurs_leave_a_flat_picture_flat_and_take_detail_from_others(name):
    flat = np.full((32, 32, 3), (10, 128, 250), np.uint8)
    assert (corrupt(flat, name, 5) == flat).all()
    detail = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert corrupt(detail, name, 5).std() < 0.75 * detail.std()


def test_contrast_keeps_the_mean_and_shrinks_the_deviation_as_told():
    image = some_image()
    result = corrupt(image, "contrast", 5)
    assert result.mean(axis=(0, 1)) == pytest.approx(image.mean(axis=(0, 1)), abs=0.5)
    assert result.std(axis=(0, 1)) == pytest.approx(0.15 * image.std(axis=(0, 1)), rel=0.05)


def test_brightness_raises_the_value_and_keeps_the_hue():
    image = np.full((4, 4, 3), (100, 50, 0), np.uint8)
    assert corrupt(image, "brightness", 3)[0, 0].tolist() == [138, 69, 0]  # 100 + 0.15 * 255, same ratios
    assert corrupt(np.zeros((4, 4, 3), np.uint8), "brightness", 5)[0, 0].tolist() == [76, 76, 76]


def test_fog_and_frost_and_snow_make_pictures_paler():
    dark = (some_image() // 3).astype(np.uint8)
    for name in ("frost", "snow"):
        assert corrupt(dark, name, 5).mean() > dark.mean() + 20
    assert corrupt(some_image(), "fog", 5).std() < some_image().std()


def test_pixelate_leaves_few_different_rows():
    image = some_image()
    assert len(np.unique(corrupt(image, "pixelate", 5), axis=0)) <= 20 < len(np.unique(image, axis=0))


def test_robustness_asks_for_every_corruption_at_every_severity():
    dataset = some_images()
    asked = []

    def predictor(images):
        asked.append(len(images))
        return np.eye(2)[dataset.labels]

    found = evaluate_robustness(predictor, dataset, names=NAMES[:3], severities=(1, 5))
    assert asked == [20] * 7 and found.accuracy.shape == (3, 2)
    assert found.mean_accuracy == found.clean_accuracy == 1.0
    assert set(found.scalars()) == {"corruption_accuracy", "clean_accuracy", *(f"corruption/{n}" for n in NAMES[:3])}


def test_each_picture_is_corrupted_in_its_own_way():
    same = ImageDataset(
        images=np.stack([some_image()] * 4), labels=np.zeros(4, np.int64), class_names=("a", "b"), ids=("",) * 4
    )
    seen = []

    def predictor(images):
        seen.append(len({image.tobytes() for image in images}))
        return np.zeros((4, 2))

    evaluate_robustness(predictor, same, names=("shot_noise",), severities=(3,))
    assert sorted(seen) == [1, 4]  # clean, corrupted


def test_classifier_that_looks_at_noise_loses_by_noise_and_not_by_blur():
    random = np.random.default_rng(0)
    grey = np.full((30, 32, 32, 3), 128.0)
    labels = np.arange(30) % 2
    grey[labels == 1] += random.normal(size=(15, 32, 32, 3)) * 30
    images = ImageDataset(
        images=grey.clip(0, 255).astype(np.uint8), labels=labels, class_names=("flat", "rough"), ids=("",) * 30
    )

    def predictor(images):
        rough = np.array([image.std() for image in images]) > 10
        return np.eye(2)[rough.astype(int)]

    found = evaluate_robustness(predictor, images, names=("gaussian_noise", "contrast", "brightness"), severities=(5,))
    assert found.clean_accuracy == 1.0
    assert found.accuracy[:, 0].tolist() == [0.5, 0.5, 1.0]


def test_corruption_error_of_a_classifier_against_itself_is_one():
    accuracy = np.array([[0.9, 0.5], [0.8, 0.6]])
    made = {"names": ("a", "b"), "severities": (1, 2), "num_images": 10, "clean_accuracy": 1.0}
    one = Robustness(accuracy=accuracy, **made)
    half = Robustness(accuracy=1 - (1 - accuracy) / 2, **made)
    assert one.corruption_error(one) == pytest.approx(1.0)
    assert half.corruption_error(one) == pytest.approx(0.5)
    low, high = one.interval
    assert one.mean_accuracy == pytest.approx(0.7) and low < 0.7 < high
    perfect = Robustness(accuracy=np.ones((2, 2)), **made)
    assert perfect.corruption_error(perfect) == 0.0 and np.isfinite(one.corruption_error(perfect))
