"""However odd EXIF is, the image is read, and turned if anything says how."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.image_files import chunk, jpeg, png, save, segment, tiff_directory

from vitcifar.data.exif import read_orientation
from vitcifar.data.image import convert_image, read_image

WIDE = Image.new("RGB", (12, 8), "red")
TURNED = (0x0112, 3, 1, b"\0\6\0\0")
TEXT, BEYOND = b"abc\0", b"\xff\xff\xff\xf0"
TURNING = {  # of which each turns the image
    "little-endian": tiff_directory((0x0112, 3, 1, b"\6\0\0\0"), order="<"),
    "a width as text": tiff_directory((0x0100, 2, 4, TEXT), TURNED),
    "a resolution as text": tiff_directory((0x011A, 2, 1, bytes(4)), (0x0128, 3, 1, b"\0\2\0\0"), TURNED),
    "values beyond the end": tiff_directory((0x010F, 2, 40, BEYOND), (0x011A, 5, 1, BEYOND), TURNED),
    "unknown types": tiff_directory((0x0100, 99, 7, TEXT), (0x0101, 0, 0, TEXT), TURNED),
    "all types": tiff_directory(*((0x9000 + kind, kind, 1, TEXT) for kind in range(17)), TURNED),
    "directories nowhere": tiff_directory(TURNED, (0x8769, 4, 1, BEYOND), (0x8825, 9, 1, BEYOND)),
    "directories as text": tiff_directory(TURNED, (0x8769, 2, 4, TEXT), (0x8825, 2, 4, TEXT)),
    "cut off": tiff_directory(TURNED)[:-4],
    "more entries promised": tiff_directory(TURNED).replace(b"\0\x08\0\1", b"\0\x08\0\x09"),
    "far more entries promised": tiff_directory(TURNED).replace(b"\0\x08\0\1", b"\0\x08\xff\xff") + bytes(20_000),
    "a long integer": tiff_directory((0x0112, 4, 1, b"\0\0\0\6")),
    "a byte": tiff_directory((0x0112, 1, 1, b"\6\0\0\0")),
}
KEEPING = {
    "garbage": b"garbage" * 9,
    "one byte": b"x",
    "half a header": b"MM\0",
    "a directory nowhere": b"MM\0*\0\xff\0\0",
    "a directory of garbage": b"MM\0*\0\0\0\x08\x40\0" + np.random.default_rng(0).bytes(20_000),
    "no such orientation": tiff_directory((0x0112, 3, 1, b"\0\x09\0\0")),
    "an orientation as text": tiff_directory((0x0112, 2, 2, b"6\0\0\0")),
    "an orientation without value": tiff_directory((0x0112, 3, 0, b"\0\6\0\0")),
    "an orientation beyond the end": tiff_directory((0x0112, 3, 9, BEYOND)),
}
FILES = {
    "png": lambda exif: png(chunk(b"eXIf", exif), WIDE),
    "png with a header": lambda exif: png(chunk(b"eXIf", b"Exif\0\0" + exif), WIDE),
    "jpeg": lambda exif: jpeg(segment(0xE1, b"Exif\0\0" + exif), WIDE),
    "jpeg without JFIF": lambda exif: jpeg(segment(0xE1, b"Exif\0\0" + exif), WIDE, jfif=False),
    "webp": lambda exif: save("WEBP", WIDE, exif=exif),
    "webp with a header": lambda exif: save("WEBP", WIDE, exif=b"Exif\0\0" + exif),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", TURNING)
def test_an_orientation_beside_anything_odd_turns_the_image(file, name):
    assert read_image(FILES[file](TURNING[name])).shape == (12, 8, 3)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", KEEPING)
def test_broken_exif_neither_turns_nor_costs_the_image(file, name):
    assert read_image(FILES[file](KEEPING[name])).shape == (8, 12, 3)


def test_exif_in_two_segments_is_read_as_one():
    exif = TURNING["a width as text"]
    parts = segment(0xE1, b"Exif\0\0" + exif[:20]) + segment(0xE1, b"Exif\0\0" + exif[20:])
    assert read_image(jpeg(parts)).shape == (12, 8, 3)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_exif_in_a_text_turns_a_png(kind):
    """ImageMagick writes it."""
    text = b"\nexif\n      32\n" + (b"Exif\0\0" + TURNING["a byte"]).hex().encode() + b"\n"
    text = {b"tEXt": text, b"zTXt": b"\0" + zlib.compress(text), b"iTXt": b"\0\0\0\0" + text}[kind]
    assert read_image(png(chunk(kind, b"Raw profile type exif\0" + text))).shape == (12, 8, 3)


@pytest.mark.parametrize("xmp", [b'<x tiff:Orientation="6"/>', b"<tiff:Orientation>6</tiff:Orientation>"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_xmp_turns_an_image_whose_exif_does_not_say(kind, xmp):
    content = png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)) if kind == "PNG" else save(kind, xmp=xmp)
    assert read_image(content).shape == (12, 8, 3)
    assert read_orientation(tiff_directory((0x0112, 3, 1, b"\0\3\0\0")), xmp) == 3


def tiff(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A TIFF with these entries in the place of others."""
    content = save("TIFF", WIDE)
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    rows = {content[at : at + 2]: content[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)}
    rows |= {struct.pack("<H", entry[0]): struct.pack("<HHI4s", *entry) for entry in entries}
    ordered = [rows[tag] for tag in sorted(rows, key=lambda tag: int.from_bytes(tag, "little"))]
    header = content[:4] + struct.pack("<I", len(content)) + content[8:]
    return header + struct.pack("<H", len(ordered)) + b"".join(ordered) + bytes(4)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest puts its own filters in the place of ours
@pytest.mark.parametrize(
    "entries",
    [
        [(282, 2, 4, TEXT), (283, 2, 4, TEXT), (296, 3, 1, b"\3\0\0\0")],
        [(700, 3, 2, TEXT)],
        [(34665, 9, 1, BEYOND), (34853, 2, 4, TEXT)],
        [(34675, 3, 2, TEXT)],
        [(281, 2, 4, TEXT)],
    ],
    ids=["resolutions as text", "XMP as numbers", "directories nowhere", "profile as numbers", "largest value as text"],
)
def test_no_odd_tag_costs_a_tiff(entries):
    assert (read_image(tiff(*entries)) == (255, 0, 0)).all()
    assert read_image(tiff(*entries, (0x0112, 3, 1, b"\6\0\0\0"))).shape == (12, 8, 3)


def test_an_image_that_a_program_made_is_turned_as_it_says_and_survives_broken_exif():
    image = WIDE.copy()
    image.getexif()[0x0112] = 6
    assert convert_image(image).shape == (12, 8, 3)
    for broken in (b"garbage", "text", 7):
        image = WIDE.copy()
        image.info["exif"] = broken
        assert convert_image(image).shape == (8, 12, 3)
