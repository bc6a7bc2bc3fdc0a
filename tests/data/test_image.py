"""Every kind of image file that people have, and files that are none."""

import io
import os
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile
from support.project import ROOT

from vitcifar.data import image as limits
from vitcifar.data.image import read_image
from vitcifar.errors import ConfigError, DataError, ImageError

UPRIGHT = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14  # (2, 3, 3): no two pixels are alike
STORED = {  # EXIF orientation -> how a camera that was held so stores UPRIGHT
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}

# pytest puts its own warning filters in the place of those that the module sets
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG put together by hand, with any header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def grey_tiff(values: np.ndarray, *, zero_is_white: bool = False) -> bytes:
    """A little-endian TIFF of one strip, put together by hand."""
    height, width = values.shape
    strip = values.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 0 if zero_is_white else 1}
    tags |= {273: 8, 277: 1, 278: height, 279: len(strip)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack("<I", 8 + len(strip))
    return b"II*\0" + start + strip + struct.pack("<H", len(tags)) + directory + bytes(4)


@pytest.fixture
def no_decoding(monkeypatch):
    """Nothing but the header may be read: what is refused costs nothing, whatever the header promises."""

    def load(self):
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


# Kinds of images


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_colours_come_through_unchanged(kind):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = read_image(encode(UPRIGHT, kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, UPRIGHT)


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
def test_lossy_kinds_come_through_nearly_unchanged(kind):
    pixels = read_image(encode(Image.new("RGB", (9, 7), (200, 100, 50)), kind))
    assert pixels.shape == (7, 9, 3)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3


def test_a_file_and_its_bytes_give_the_same(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(UPRIGHT))
    np.testing.assert_array_equal(read_image(path), read_image(path.read_bytes()))


def test_the_content_decides_and_not_the_ending(tmp_path):
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encode(UPRIGHT))
    np.testing.assert_array_equal(read_image(path), UPRIGHT)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(("alpha", "expected"), [(0, 255), (255, 100), (128, 177)])
def test_transparency_is_laid_over_white(mode, alpha, expected):
    colour = (100, 100, 100, alpha) if mode == "RGBA" else (100, alpha)
    pixels = read_image(encode(Image.new(mode, (5, 4), colour)))
    assert pixels.shape == (4, 5, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_laid_over_white(kind):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 2)
    pixels = read_image(encode(image, kind, transparency=1))
    assert pixels[0, 0].tolist() == [200, 100, 50]
    assert pixels[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("mode", "transparent"), [("L", 90), ("RGB", (90, 90, 90))])
def test_a_transparent_colour_without_alpha_is_laid_over_white(mode, transparent):
    pixels = read_image(encode(Image.new(mode, (4, 4), transparent), transparency=transparent))
    assert (pixels == 255).all()


def test_a_palette_with_an_alpha_for_each_colour_is_laid_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    pixels = read_image(encode(image, transparency=bytes([255, 51])))
    assert pixels[0].tolist() == [[0, 0, 0], [204, 204, 204]]


def test_a_transparent_edge_does_not_bleed_its_hidden_colour_when_scaled_down():
    image = Image.new("RGBA", (2048, 2048), (255, 0, 0, 0))  # red, but nobody can see it
    image.paste((0, 0, 255, 255), (0, 0, 1025, 2048))
    pixels = read_image(encode(image, compress_level=1)).astype(int)
    assert (pixels[..., 0] <= pixels[..., 2]).all()


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_is_repeated_in_three_channels(mode):
    image = Image.new("L", (3, 1))
    image.putdata([0, 255, 255])
    assert read_image(encode(image.convert(mode)))[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(read_image(encode(image, kind)).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_tones(kind):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = read_image(encode(Image.fromarray(values), kind))
    np.testing.assert_array_equal(pixels[..., 0], values >> 8)


def test_16_bit_colours_keep_their_tones():
    values = np.array([[0, 257 * 100, 65535]], dtype=">u2").tobytes()
    assert read_image(png(1, 1, b"\0" + values, depth=16, colour=2))[0, 0].tolist() == [0, 100, 255]


def test_16_bit_tiff_where_zero_is_white_is_not_a_negative():
    values = np.array([[0, 65535]])
    assert read_image(grey_tiff(values, zero_is_white=True))[0, :, 0].tolist() == [255, 0]
    assert read_image(grey_tiff(values))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_of_an_unknown_range_are_rejected(dtype):
    with pytest.raises(ImageError, match="of unknown range: save it with 8 bits per channel"):
        read_image(encode(Image.fromarray(np.ones((4, 4), dtype)), "TIFF"))


def test_lab_colours_are_rejected_with_a_way_out():
    with pytest.raises(ImageError, match="LAB colours: save it as RGB"):
        read_image(encode(Image.new("LAB", (4, 4)), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_image_is_set_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    content = encode(STORED[orientation], kind, exif=exif, **options)
    np.testing.assert_array_equal(read_image(content), UPRIGHT)


@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_jpeg_is_set_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = STORED[orientation].repeat(16, axis=0).repeat(16, axis=1)
    content = encode(large, "JPEG", exif=exif, quality=100, subsampling=0)
    difference = read_image(content)[8::16, 8::16].astype(int) - UPRIGHT
    assert np.abs(difference).max() <= 4


def test_broken_exif_does_not_lose_the_image():
    content = encode(UPRIGHT, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    np.testing.assert_array_equal(read_image(content), UPRIGHT)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (read_image(content) == (255, 0, 0)).all()


# Sizes


def test_one_pixel_is_an_image():
    assert read_image(encode(Image.new("RGB", (1, 1), "red"))).tolist() == [[[255, 0, 0]]]


@pytest.mark.parametrize(
    ("size", "expected"), [((1024, 768), (768, 1024)), ((2048, 1024), (512, 1024)), ((100, 3000), (1024, 34))]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_image_is_scaled_down_to_1024_on_its_longer_side(size, expected, kind):
    assert read_image(encode(Image.new("RGB", size), kind)).shape == (*expected, 3)


def test_a_large_jpeg_that_is_decoded_smaller_looks_the_same():
    ramp = np.linspace(0, 255, 4096).astype(np.uint8)[None, :, None].repeat(64 * 4, axis=0).repeat(3, axis=2)
    whole = read_image(encode(ramp, "PNG", compress_level=1)).astype(int)
    assert np.abs(read_image(encode(ramp, "JPEG", quality=95)).astype(int) - whole).max() <= 3


def test_scaling_down_averages_and_skips_no_pixel():
    board = (np.indices((2048, 2048)).sum(axis=0) % 2 * 255).astype(np.uint8)
    inside = read_image(encode(board, compress_level=1))[8:-8, 8:-8]
    assert np.abs(inside.astype(int) - 127).max() <= 2


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 60_000), "1 x 60000 pixels, the limit is 20,000 per side"),
        ((60_000, 1), "60000 x 1 pixels, the limit is 20,000 per side"),
        ((1, 60), "1 x 60 pixels: the longer side can be at most 32 times the shorter one"),
        ((9_500, 9_500), "9500 x 9500 pixels, the limit is 50,000,000 pixels in total"),
        ((2_000_000, 2_000_000), "has more than 50,000,000 pixels, the limit"),
    ],
)
def test_a_size_beyond_the_limits_is_rejected_from_the_header(size, message):
    content = png(*size, b"", depth=1)
    assert len(content) < 100
    with pytest.raises(ImageError, match=message):
        read_image(content, "bomb.png")


@pytest.mark.usefixtures("no_decoding")
def test_a_real_1_bit_image_of_96_megapixels_is_rejected_from_the_header():
    content = png(12_000, 8_000, bytes(1 + 1_500) * 8_000, depth=1)
    assert len(content) < 20_000
    with pytest.raises(ImageError, match="scale it down"):
        read_image(content)


def test_pillow_adds_no_warning_to_our_sentence(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(9_500, 9_500, b"", depth=1))
    (tmp_path / "cut.tiff").write_bytes(b"II*\0\xff\xff\xff\xff")
    code = """if True:
        import sys, pathlib
        from vitcifar.data.image import ImageError, read_image
        for path in pathlib.Path(sys.argv[1]).iterdir():
            try: read_image(path)
            except ImageError as error: print(error)
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2
    assert not done.stderr


@pytest.mark.usefixtures("no_decoding")
def test_a_progressive_jpeg_with_thousands_of_scans_is_rejected_from_its_bytes():
    content = encode(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    last_scan = content[content.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="more than 200 scans"):
        read_image(content[:-2] + last_scan * 1000 + content[-2:])


def test_an_ordinary_progressive_jpeg_is_read():
    assert read_image(encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True)).shape == (64, 64, 3)


def test_more_bytes_than_the_limit_are_rejected_before_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / "huge.tiff"
    with path.open("wb") as file:
        file.truncate(33 * 2**20)
    monkeypatch.setattr(type(path), "read_bytes", lambda self: pytest.fail("the file was read"))
    with pytest.raises(ImageError, match=r"huge\.tiff is 33 MiB, the limit is 32 MiB"):
        read_image(path)
    with pytest.raises(ImageError, match="The image is 33 MiB"):
        read_image(bytes(33 * 2**20))


# Files that are no image


@pytest.mark.parametrize("kind", [*limits.FORMATS, "TIFF"])
def test_a_truncated_file_is_rejected_and_named(kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = encode(noise, kind)
    with pytest.raises(ImageError, match=r"^cut\.img is broken"):
        read_image(content[: len(content) // 2], "cut.img")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^a is empty"),
        (b"hello, world\n" * 99, "^a is not a supported image, or it is broken: save it as PNG, JPEG, "),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "^a is an SVG drawing"),
        (b"%PDF-1.7 ...", "^a is a PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "^a is a HEIC image"),
        (b"\x89PNG\r\n\x1a\n", "^a is "),
        (b"\xff\xd8\xff", "^a is "),
        (b"II*\0\xff\xff\xff\xff", "^a is "),
    ],
)
def test_what_is_no_image_is_rejected_in_one_sentence(content, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(content, "a")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["little-endian", "big-endian", "big"])
def test_tiff_is_read_only_where_the_environment_says_so(kind, monkeypatch):
    content = encode(UPRIGHT, "TIFF", big_tiff=kind == "big")
    if kind == "big-endian":
        content = b"MM\0*" + content[4:]
    else:
        assert (read_image(content) == UPRIGHT).all()
    for value in ("none", "", None):
        monkeypatch.setenv(limits.MORE_FORMATS, value) if value is not None else monkeypatch.delenv(limits.MORE_FORMATS)
        with pytest.raises(ImageError, match=r"^a is a TIFF image: save it as PNG, or set VITCIFAR_MORE_FORMATS=TIFF"):
            read_image(content, "a")
        assert (read_image(encode(UPRIGHT)) == UPRIGHT).all()


def test_an_unknown_format_in_the_environment_is_named_with_those_that_there_are(monkeypatch):
    monkeypatch.setenv(limits.MORE_FORMATS, "tiff, EPS")
    choices = "TIFF, AVIF, JPEG2000, PPM, TGA"
    with pytest.raises(
        ConfigError, match=rf"^VITCIFAR_MORE_FORMATS names 'EPS': set it to some of {choices}, or to none\.$"
    ):
        read_image(encode(UPRIGHT))


@pytest.mark.parametrize("kind", ["JPEG2000", "PPM", "TGA", "AVIF"])
def test_other_formats_are_read_where_the_environment_names_them(kind, monkeypatch):
    options = {"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {}
    content = encode(UPRIGHT, kind, **options)
    monkeypatch.setenv(limits.MORE_FORMATS, f"TIFF, {kind.lower()}")
    assert abs(read_image(content).astype(int) - UPRIGHT).max() <= (3 if kind == "AVIF" else 0)
    monkeypatch.setenv(limits.MORE_FORMATS, "TIFF")
    with pytest.raises(
        ImageError, match="not a supported image" if kind == "TGA" else rf"{kind} image: save .*={kind}"
    ):
        read_image(content)


def test_an_avif_is_turned_as_it_says(monkeypatch):
    monkeypatch.setenv(limits.MORE_FORMATS, "AVIF")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert read_image(encode(np.zeros((20, 30, 3), np.uint8), "AVIF", exif=exif)).shape == (30, 20, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P6 #" + b"x" * 3 * 10**7 + b"\n2 2 255\n" + bytes(12), "its header is long"),
        (b"P6\n" + b"#a\n" * 10**7, "its header is long"),
        (b"P6 2 2" + b" " * 3 * 10**7, "its header is long"),
        (b"P3 2 2 255\n" + b"1 " * 10**7, "is a PPM image in text"),
        (b"P6 7000 7000 100\n" + bytes(99), "of a range other than 255, the limit is 1,000,000"),
    ],
)
def test_a_ppm_that_pillow_would_read_in_python_is_refused_at_once(content, message, monkeypatch):
    monkeypatch.setenv(limits.MORE_FORMATS, "PPM")
    began = time.monotonic()
    with pytest.raises(ImageError, match=message):
        read_image(content)
    assert time.monotonic() - began < 0.5


def test_a_name_with_line_breaks_stays_on_one_line():
    with pytest.raises(ImageError) as caught:
        read_image(b"", "evil\nname\x1b[2J")
    assert str(caught.value).isprintable()


def test_a_path_that_holds_no_file_is_rejected(tmp_path):
    with pytest.raises(ImageError, match=r"^There is no file .*nothing\.png\.$"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="is not a file"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is not a file"):
        read_image(tmp_path / "pipe.png")


def test_an_image_error_is_an_error_about_data():
    assert issubclass(ImageError, DataError)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from([*limits.FORMATS, "TIFF"]),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 2000),
)
def test_a_damaged_file_gives_an_image_or_one_sentence(kind, changes, length):
    content = bytearray(encode(np.arange(300, dtype=np.uint8).repeat(3).reshape(15, 20, 3), kind))
    for place, value in changes:
        content[place % len(content)] = value
    try:
        pixels = read_image(bytes(content[: max(1, length)]))
    except ImageError as error:
        assert str(error).startswith("The image ")
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3 and pixels.shape[2] == 3
        assert max(pixels.shape) <= 1024
