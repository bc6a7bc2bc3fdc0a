"""Odd-looking images: which are found, which are not, and that the measures are cleanvision's."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from vitcifar.data.quality import QUALITY_CHECKS, measure, quality_scores


def crops(number, blur=0.0):
    """Squares with some contrast from scikit-learn's two photos, of 40 to 200 pixels."""
    random, photos, images = np.random.default_rng(0), load_sample_images().images, []
    while len(images) < number:
        side = random.integers(40, 200)
        y, x = random.integers(0, 427 - side), random.integers(0, 640 - side)
        image = Image.fromarray(photos[len(images) % 2][y : y + side, x : x + side])
        if np.asarray(image.convert("L")).std() > 15:
            images.append(np.asarray(image.filter(ImageFilter.GaussianBlur(float(blur * side))) if blur else image))
    return images


def scores(images):
    return quality_scores(np.array([measure(image) for image in images]))


def found(image, *others):
    """The kinds of which an image is, among others."""
    return {kind for kind, values in scores([image, *others]).items() if values[0] < QUALITY_CHECKS[kind].limit}


def plain(value, height=20, width=20):
    return np.full((height, width, 3), value, np.uint8)


def checks(height, width):
    """Black and white pixels in turns: bright, dark and sharp enough."""
    pattern = (np.add.outer(np.arange(height), np.arange(width)) % 2 * 200 + 20).astype(np.uint8)
    ramp = np.arange(height * width).reshape(height, width) % 31
    return np.stack([pattern + ramp.astype(np.uint8)] * 3, axis=2)


def test_blurred_photos_are_found_and_sharp_ones_are_not():
    limit = QUALITY_CHECKS["blurry"].limit
    assert (scores(crops(100))["blurry"] < limit).mean() <= 0.03
    assert (scores(crops(100, blur=0.04))["blurry"] < limit).mean() >= 0.95


def test_a_dark_photo_is_dark_and_not_blurry_and_a_bright_one_is_bright():
    photo = crops(2)[0]
    assert found((photo * 0.2).astype(np.uint8)) == {"dark"}
    assert found(255 - (photo * 0.04).astype(np.uint8)) >= {"bright"}
    assert not found(photo)


def test_an_image_of_one_colour_has_low_information_and_is_not_called_blurry():
    assert found(plain(128)) == {"low information"}
    assert found(plain(0)) == {"low information", "dark"}


def test_a_long_and_narrow_image_has_an_odd_aspect_ratio_upright_or_not():
    assert found(checks(60, 20)) == found(checks(20, 60)) == {"odd aspect ratio"}
    assert not found(checks(50, 20))


def test_a_size_is_odd_among_others_and_not_by_itself():
    same = [checks(32, 32)] * 9
    assert found(checks(48, 48), *same) == found(checks(20, 20), *same) == {"odd size"}
    assert not found(checks(32, 32), *same) and not found(checks(34, 34), *same)
    varied = [checks(side, side) for side in range(30, 60, 3)]
    assert not found(checks(90, 90), *varied)
    assert found(checks(300, 300), *varied) == {"odd size"}
    assert not found(checks(300, 300))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2), (3, 3), (1, 3000)])
def test_the_smallest_images_have_scores(shape):
    assert all(0 <= values[0] <= 1 for values in scores([plain(90, *shape)]).values())


def test_scores_but_that_of_blur_are_those_of_cleanvision():
    theirs = pytest.importorskip("cleanvision.issue_managers.image_property")
    pandas = pytest.importorskip("pandas")
    images = [*crops(10), *crops(10, blur=0.05), plain(7), checks(40, 90)]
    properties = {
        "dark": (theirs.BrightnessProperty("dark"), "dark", {}),
        "bright": (theirs.BrightnessProperty("light"), "light", {}),
        "low information": (theirs.EntropyProperty(), "low_information", {"normalizing_factor": 0.1}),
        "odd aspect ratio": (theirs.AspectRatioProperty(), "odd_aspect_ratio", {}),
        "odd size": (theirs.SizeProperty(), "odd_size", {}),
    }
    ours = scores(images)
    for kind, (property, name, options) in properties.items():
        raw = pandas.DataFrame([property.calculate(Image.fromarray(image)) for image in images])
        expected = property.get_scores(raw, name, **options)[f"{name}_score"]
        assert ours[kind] == pytest.approx(expected.to_numpy(), abs=1e-6), kind
