"""Images unlike the training data are found by statistics of their pixels."""

import dataclasses
import json

import numpy as np
import pytest
from support.toys import make_image, make_onnx

from vitcifar.data.splits import Splits, read_splits
from vitcifar.inference.image_statistics import ImageStatistics, statistics_of
from vitcifar.inference.session import OnnxClassifier
from vitcifar.presets import resolve


@pytest.fixture(scope="module")
def digits() -> Splits:
    return read_splits(resolve("digits"))


@pytest.fixture(scope="module")
def fitted(digits: Splits) -> ImageStatistics:
    return ImageStatistics.fit(digits.train.images, digits.validation.images)


def share_flagged(fitted: ImageStatistics, images: np.ndarray | list[np.ndarray]) -> float:
    return float(np.mean([fitted.distance(image) > fitted.threshold for image in images]))


def test_other_images_are_flagged_and_the_test_images_are_not(digits, fitted):
    assert share_flagged(fitted, digits.test.images) <= 0.03
    rng = np.random.default_rng(0)
    colours = [np.full((32, 32, 3), rng.integers(0, 256, 3), np.uint8) for _ in range(20)]
    noise = list(rng.integers(0, 256, (20, 48, 40, 3), np.uint8))
    inverted = list(255 - digits.test.images[:20])
    for others in (colours, noise, inverted):
        assert share_flagged(fitted, others) == 1


def test_at_most_one_percent_of_the_validation_images_are_flagged(digits, fitted):
    assert share_flagged(fitted, digits.validation.images) <= 0.01
    few = ImageStatistics.fit(digits.train.images[:10], digits.validation.images[:3])
    assert share_flagged(few, digits.validation.images[:3]) == 0, "few images set no quantile: the largest counts"


def test_training_images_that_are_all_alike_are_no_error(digits):
    black = np.zeros((4, 8, 8, 3), np.uint8)
    fitted = ImageStatistics.fit(black, black)
    assert fitted.distance(black[0]) <= fitted.threshold < fitted.distance(digits.test.images[0])


def test_the_statistics_are_those_of_any_size_and_survive_json(fitted):
    image = np.full((7, 300, 3), (10, 20, 30), np.uint8)
    small, large = statistics_of(image), statistics_of(np.repeat(image, 3, axis=0))
    np.testing.assert_allclose(small, large, atol=1e-9)
    back = ImageStatistics.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert back.distance(image) == fitted.distance(image) and back.threshold == fitted.threshold


def test_a_prediction_says_whether_its_image_is_out_of_distribution(tmp_path, fitted):
    file = make_onnx(tmp_path / "model.onnx")
    photo = OnnxClassifier(file, statistics=fitted).predict(make_image("red"))
    assert photo.out_of_distribution and photo.ood_score == pytest.approx(
        fitted.distance(np.full((32, 32, 3), (255, 0, 0), np.uint8)) / fitted.threshold
    )
    fields = photo.to_dict("toy", 1)
    assert fields["out_of_distribution"] is True and fields["ood_score"] == photo.ood_score
    assert not dataclasses.replace(photo, ood_score=1.0).out_of_distribution
    table = OnnxClassifier(file, statistics=fitted).predict(make_image("red"), with_ood=False)
    assert table.ood_score is None and table.probabilities == photo.probabilities
    unknown = OnnxClassifier(file).predict(make_image("red"))
    assert unknown.ood_score is None and not {"out_of_distribution", "ood_score"} & set(unknown.to_dict("toy", 1))
