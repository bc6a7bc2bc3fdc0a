"""16 bits become 8 by the range that a file declares, or that its values have."""

import numpy as np
import pytest
from support.image_files import chunk, png_of_16_bits, tiff_of_16_bit_planes, tiff_of_16_bits

from vitcifar.data.bit_depth import significant_bits
from vitcifar.data.image import read_image
from vitcifar.errors import ImageError
from vitcifar.serving.decoder import read_isolated

RANDOM = np.random.default_rng(0)
MAX_SAMPLE_VALUE, LONG, TEXT = 281, 4, 2
FILES = {
    "png": png_of_16_bits,
    "tiff": tiff_of_16_bits,
    "big-endian tiff": lambda values: tiff_of_16_bits(values, order=">"),
    "compressed tiff": lambda values: tiff_of_16_bits(values, packed=True),
    "compressed big-endian tiff": lambda values: tiff_of_16_bits(values, order=">", packed=True),
}


def values_up_to(largest: int, *shape: int) -> np.ndarray:
    values = RANDOM.integers(0, largest + 1, shape)
    values.flat[0] = largest
    return values


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("largest", "num_bits"),
    [(255, 8), (256, 10), (1023, 10), (1024, 12), (3000, 12), (4095, 12), (16383, 14), (16384, 16), (65535, 16)],
)
def test_the_fewest_bits_that_hold_all_values_are_scaled_to_8(file, largest, num_bits):
    grey, colours = values_up_to(largest, 9, 7), values_up_to(largest, 9, 7, 3)
    np.testing.assert_array_equal(read_image(FILES[file](grey))[..., 0], grey >> num_bits - 8)
    np.testing.assert_array_equal(read_image(FILES[file](colours)), colours >> num_bits - 8)


def test_the_colours_of_an_image_are_scaled_alike():
    colours = np.stack([values_up_to(largest, 5, 5) for largest in (4095, 100, 1000)], axis=-1)
    np.testing.assert_array_equal(read_image(png_of_16_bits(colours)), colours >> 4)


@pytest.mark.parametrize("opaque", [65535, 4095])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_transparency_is_scaled_by_its_own_range(num_channels, opaque):
    colours = values_up_to(4095, 6, 6, num_channels)
    alpha = np.full((6, 6, 1), opaque)
    alpha[0, 0] = 0
    expected = np.broadcast_to(colours >> 4, (6, 6, 3)).copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(read_image(png_of_16_bits(np.dstack([colours, alpha]))), expected)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_the_declared_range_counts_before_the_measured_one(shape):
    dim = np.full(shape, 1000)
    for bits in (11, 12, 16):
        declared = chunk(b"sBIT", bytes([bits] * (3 if len(shape) == 3 else 1)))
        assert (read_image(png_of_16_bits(dim, declared)) == 1000 >> bits - 8).all()
        assert (read_image(tiff_of_16_bits(dim, (MAX_SAMPLE_VALUE, LONG, 2**bits - 1))) == 1000 >> bits - 8).all()
    assert (read_image(png_of_16_bits(dim)) == 1000 >> 2).all()


def test_a_declared_range_that_values_exceed_does_not_count():
    """A PNG of 12 bits that is scaled to 16, as its standard demands, says 12 as well."""
    assert (read_image(png_of_16_bits(np.full((4, 4, 3), 60_000), chunk(b"sBIT", b"\x0c" * 3))) == 60_000 >> 8).all()
    assert significant_bits(5000, 12) == 14


@pytest.mark.parametrize("declared", [(MAX_SAMPLE_VALUE, TEXT, 4095), (MAX_SAMPLE_VALUE, LONG, 0)])
def test_a_range_that_is_no_number_does_not_count(declared):
    assert (read_image(tiff_of_16_bits(np.full((4, 4), 1000), declared)) == 1000 >> 2).all()


def test_separate_planes_are_read_rightly_or_refused():
    values = values_up_to(65535, 9, 7, 3)
    np.testing.assert_array_equal(read_image(tiff_of_16_bit_planes(values, packed=True)), values >> 8)
    for content in (tiff_of_16_bit_planes(values), tiff_of_16_bit_planes(values >> 4, packed=True)):
        with pytest.raises(ImageError, match=r"^a\.tiff has 16-bit colours in separate planes: save it with 8 bits"):
            read_image(content, "a.tiff")


def test_12_bits_where_zero_is_white_are_not_a_negative():
    zero_is_white = (262, LONG, 0)
    assert read_image(tiff_of_16_bits(np.array([[0, 4095]]), zero_is_white))[0, :, 0].tolist() == [255, 0]


def test_the_page_scales_alike():
    content = png_of_16_bits(values_up_to(4095, 9, 7, 3))
    np.testing.assert_array_equal(read_isolated(content), read_image(content))
