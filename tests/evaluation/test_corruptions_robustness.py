"""Accuracy on corrupted images: every corruption at every severity, each image in its own way."""

import numpy as np
import pytest
from support.textures import textured_image

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.calibration import wilson_interval
from vitcifar.evaluation.corruptions import CORRUPTIONS, Robustness, evaluate_robustness

NAMES = tuple(CORRUPTIONS)


def some_images(num=20):
    images = np.stack([textured_image(seed=seed) for seed in range(num)])
    return ImageDataset(
        images=images, labels=np.arange(num) % 2, class_names=("a", "b"), ids=tuple(map(str, range(num)))
    )


def test_every_corruption_is_evaluated_at_every_severity():
    dataset = some_images()
    sizes = []

    def predictor(images):
        sizes.append(len(images))
        return np.eye(2)[dataset.labels]

    result = evaluate_robustness(predictor, dataset, names=NAMES[:3], severities=(1, 5))
    assert sizes == [20] * 7 and result.accuracy.shape == (3, 2)
    assert result.mean_accuracy == result.clean_accuracy == 1.0
    assert result.names == tuple(NAMES[:3])


def test_each_image_is_corrupted_with_its_own_seed():
    same = ImageDataset(
        images=np.stack([textured_image()] * 4), labels=np.zeros(4, np.int64), class_names=("a", "b"), ids=("",) * 4
    )
    num_different = []

    def predictor(images):
        num_different.append(len({image.tobytes() for image in images}))
        return np.zeros((4, 2))

    evaluate_robustness(predictor, same, names=("shot_noise",), severities=(3,))
    assert sorted(num_different) == [1, 4]  # clean, corrupted


def test_a_classifier_of_texture_loses_accuracy_by_noise_and_not_by_contrast_or_brightness():
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

    result = evaluate_robustness(predictor, images, names=("gaussian_noise", "contrast", "brightness"), severities=(5,))
    assert result.clean_accuracy == 1.0
    assert result.accuracy[:, 0].tolist() == [0.5, 0.5, 1.0]


def test_the_mean_accuracy_has_the_interval_of_its_number_of_images():
    result = Robustness(
        names=("a", "b"),
        severities=(1, 2),
        num_images=10,
        clean_accuracy=1.0,
        accuracy=np.array([[0.9, 0.5], [0.8, 0.6]]),
    )
    assert result.mean_accuracy == pytest.approx(0.7)
    assert result.interval(result.mean_accuracy) == wilson_interval(7, 10)
