"""Colours become sRGB by the profile of their file: checked with the formulas of the standards (IEC 61966-2-1, CIE)."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from support.image_files import chunk, png, png_of_16_bits, save
from support.profiles import (
    ADOBE_RGB,
    D50,
    D50_XYZ,
    D65,
    DISPLAY_P3,
    PROPHOTO,
    SRGB,
    SRGB_CURVE,
    cmyk_profile,
    grey_profile,
    rgb_profile,
    to_xyz,
)

from vitcifar.data import colour_profile
from vitcifar.data.image import convert_image, read_image
from vitcifar.serving.decoder import read_isolated

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
NOISE = Image.fromarray(PIXELS)
SPACES = {  # red, green and blue, the white point, and the curve
    "Display P3": (DISPLAY_P3, D65, SRGB_CURVE),
    "Adobe RGB": (ADOBE_RGB, D65, 2.19921875),
    "ProPhoto": (PROPHOTO, D50, 1.80078125),
}
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def linear(values: np.ndarray, curve: float | tuple[float, ...]) -> np.ndarray:
    if isinstance(curve, float):
        return values**curve
    gamma, a, b, c, d = curve
    return np.where(values >= d, (a * values + b) ** gamma, c * values)


def expected_srgb(space: str) -> np.ndarray:
    primaries, white, curve = SPACES[space]
    matrix = np.linalg.inv(to_xyz(SRGB, D65)) @ to_xyz(primaries, white)
    return encode_srgb(linear(PIXELS / 255, curve) @ matrix.T)


def expected_lab(lightness: float, a: float, b: float) -> np.ndarray:
    y = (lightness + 16) / 116
    xyz = D50_XYZ * np.array([y + a / 500, y, y - b / 200]) ** 3
    return encode_srgb(np.linalg.inv(to_xyz(SRGB, D65)) @ xyz)


def test_the_matrix_of_display_p3_is_the_published_one():
    matrix = np.linalg.inv(to_xyz(SRGB, D65)) @ to_xyz(DISPLAY_P3, D65)
    published = [[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]]
    np.testing.assert_allclose(matrix, published, atol=1e-3)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("space", SPACES)
def test_colours_are_converted_to_srgb(kind, space):
    content = save(kind, NOISE, icc_profile=rgb_profile(*SPACES[space]), **LOSSLESS[kind])
    converted = read_image(content)
    assert np.abs(converted - expected_srgb(space)).max() <= 1.5
    assert np.abs(converted.astype(int) - PIXELS).max() > 50
    np.testing.assert_array_equal(read_isolated(content), converted)
    np.testing.assert_array_equal(convert_image(Image.open(io.BytesIO(content))), converted)


def test_a_jpeg_whose_profile_lies_in_many_segments_is_converted():
    profile = rgb_profile() + bytes(200_000)
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    in_many, in_one, none = (read_image(save("JPEG", flat, icc_profile=icc)) for icc in (profile, rgb_profile(), b""))
    np.testing.assert_array_equal(in_many, in_one)
    assert in_many[0, 0, 0] > none[0, 0, 0] + 10


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        rgb_profile(SRGB),
        rgb_profile(np.array(SRGB) + 0.0001),
    ],
    ids=["Little CMS", "by hand", "rounded"],
)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_profile_of_srgb_changes_no_pixel(kind, profile):
    np.testing.assert_array_equal(read_image(save(kind, NOISE, icc_profile=profile, **LOSSLESS[kind])), PIXELS)


@pytest.mark.parametrize(
    "profile",
    [
        b"garbage",
        rgb_profile()[:100],
        rgb_profile()[:250],
        rgb_profile() + bytes(colour_profile.MAX_PROFILE_BYTES),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        grey_profile(1.0),
        cmyk_profile((60, 20, 30)),
    ],
    ids=["garbage", "cut header", "cut", "too long", "of Lab", "of grey", "of CMYK"],
)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_profile_that_is_broken_or_of_other_colours_is_ignored(kind, profile):
    np.testing.assert_array_equal(read_image(save(kind, NOISE, icc_profile=profile, **LOSSLESS[kind])), PIXELS)


def test_a_profile_with_a_wrong_checksum_is_ignored():
    content = chunk(b"iCCP", b"p\0\0" + zlib.compress(rgb_profile()))
    np.testing.assert_array_equal(read_image(png(content[:-1] + bytes([content[-1] ^ 1]), NOISE)), PIXELS)


def test_transparency_stays():
    alpha = np.random.default_rng(1).integers(0, 256, (24, 32), np.uint8)
    expected = Image.new("RGB", NOISE.size, "white")
    expected.paste(
        Image.fromarray(read_image(save("PNG", NOISE, icc_profile=rgb_profile()))), mask=Image.fromarray(alpha)
    )
    content = save("PNG", Image.fromarray(np.dstack([PIXELS, alpha])), icc_profile=rgb_profile())
    np.testing.assert_array_equal(read_image(content), np.asarray(expected))


def test_a_palette_and_16_bits_are_converted():
    palette = NOISE.quantize(16)
    as_colours = save("PNG", palette.convert("RGB"), icc_profile=rgb_profile())
    np.testing.assert_array_equal(read_image(save("PNG", palette, icc_profile=rgb_profile())), read_image(as_colours))
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(rgb_profile()))
    content = png_of_16_bits(PIXELS.astype(np.uint16) * 257, profile)
    np.testing.assert_array_equal(read_image(content), read_image(save("PNG", NOISE, icc_profile=rgb_profile())))


@pytest.mark.parametrize("mode", ["L", "LA"])
@pytest.mark.parametrize("profile", [grey_profile(1.0), rgb_profile(gamma=1.0)], ids=["of grey", "of RGB"])
def test_grey_is_converted_by_a_profile_of_grey_or_of_colours(mode, profile):
    grey = Image.linear_gradient("L")
    pixels = read_image(save("PNG", grey.convert(mode), icc_profile=profile))
    assert np.abs(pixels - encode_srgb(np.asarray(grey)[..., None] / 255)).max() <= 1
    plain = read_image(save("PNG", grey.convert(mode), icc_profile=grey_profile(2.2)))
    assert 0 < np.abs(plain.astype(int) - np.asarray(grey)[..., None]).max() <= 10


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(kind):
    profile = cmyk_profile((60, 20, 30))
    for inks, lab in {(0, 0, 0, 0): (100, 0, 0), (255, 255, 0, 0): (60, 20, 30), (0, 0, 0, 128): (49.8, 0, 0)}.items():
        pixels = read_image(save(kind, Image.new("CMYK", (16, 16), inks), icc_profile=profile))
        assert np.abs(pixels[0, 0] - expected_lab(*lab)).max() <= 2.5


def test_cmyk_without_a_profile_that_fits_stays_as_it_was():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8), "CMYK")
    for profile in (b"", rgb_profile(), b"garbage"):
        pixels = read_image(save("TIFF", image, icc_profile=profile))
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_a_large_image_is_converted_after_it_was_scaled_down(monkeypatch):
    sizes = []
    apply = ImageCms.ImageCmsTransform.apply
    monkeypatch.setattr(
        ImageCms.ImageCmsTransform, "apply", lambda self, image: sizes.append(image.size) or apply(self, image)
    )
    read_image(save("PNG", Image.new("RGB", (3000, 1500)), icc_profile=rgb_profile(PROPHOTO)))
    assert sizes[-1] == (1024, 512)
