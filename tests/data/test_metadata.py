"""Metadata that would be read in quadratic time is refused; that of cameras and editors is not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vitcifar.data.image import read_image
from vitcifar.data.metadata import MAX_BLOCKS
from vitcifar.errors import ImageError

NUM_BYTES = 4 * 2**20
RED = Image.new("RGB", (12, 8), "red")


def save(kind: str, image: Image.Image = RED, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gif(extensions: bytes) -> bytes:
    content = save("GIF")
    start = 13 + (3 << (content[10] & 7) + 1)
    return content[:start] + extensions + content[start:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(chunks: bytes) -> bytes:
    content = save("PNG")
    return content[:33] + chunks + content[33:]  # after the header


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(segments: bytes) -> bytes:
    content = save("JPEG")
    return content[:2] + segments + content[2:]


def filled(block: bytes) -> bytes:
    return block * (NUM_BYTES // len(block))


def directory(num_tags: int, kind: int, count: int) -> bytes:
    """A TIFF header whose tags have all the same values."""
    values = bytes(count * (8 if kind == 5 else 1))
    entries = b"".join(struct.pack("<HHII", 300 + index, kind, count, 8) for index in range(num_tags))
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", num_tags) + entries + bytes(4)


EXIF = b"Exif\0\0"
HOSTILE = {
    "comments": gif(filled(b"!\xfe\x01a\0")),
    "one comment": gif(b"!\xfe" + filled(b"\xff" + b"a" * 255) + b"\0"),
    "extensions": gif(filled(b"!\xff\x01a\0")),
    "exif headers in png": png(chunk(b"eXIf", filled(EXIF))),
    "exif headers in webp": save("WEBP", exif=filled(EXIF)),
    "exif headers in jpeg": jpeg(filled(segment(0xE1, EXIF * 10_000))),
    "exif segments": jpeg(filled(segment(0xE1, EXIF + b"aaaa"))),
    "segments": jpeg(filled(segment(0xFE, b"a"))),
    "markers without length": jpeg(filled(b"\xff\xd0")),
    "fill bytes": jpeg(b"\xff" * NUM_BYTES),
    "escaped bytes": jpeg(filled(b"\xff\0")),
    "junk": jpeg(segment(0xFE, b"a") + bytes([1]) * NUM_BYTES),
    "junk to the end": jpeg(b"")[:20] + bytes([1]) * NUM_BYTES,
    "comments behind junk": gif(b"\0" + filled(b"!\xfe\x01a\0")),
    "junk in gif": gif(bytes(NUM_BYTES)),
    "empty chunks of pixels": png(filled(chunk(b"IDAT", b""))),
    "frames": png(filled(chunk(b"fcTL", bytes(26)))),
    "tags on one place in tiff": directory(300, 7, 2**20),
    "rationals in tiff": directory(1, 5, 2**17),
    "rationals on one place in png": png(chunk(b"eXIf", directory(300, 5, 2**12))),
    "tags on one place in jpeg": jpeg(segment(0xE1, EXIF + directory(300, 7, 2**15))),
    "tags on one place in webp": save("WEBP", exif=directory(300, 7, 2**20)),
    "private chunks": png(filled(chunk(b"prVt", b""))),
    "colour profiles": png(filled(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**6))))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_metadata_without_measure_is_refused(name):
    """Before Pillow reads it, which takes up to minutes, and then answers with an image."""
    with pytest.raises(ImageError, match=r"^a\.png .*: save it again without metadata\.$"):
        read_image(HOSTILE[name], "a.png")


def in_small_chunks() -> bytes:
    """A PNG whose pixels come in more chunks than metadata may have."""
    content = save("PNG", Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)))
    start = content.index(b"IDAT") - 4
    (length,) = struct.unpack(">I", content[start : start + 4])
    parts = [content[start + 8 + index : start + 8 + min(index + 100, length)] for index in range(0, length, 100)]
    assert len(parts) > MAX_BLOCKS
    return content[:start] + b"".join(chunk(b"IDAT", part) for part in parts) + content[start + 12 + length :]


USUAL = {
    "comments": gif((b"!\xfe\xff" + b"a" * 255 + b"\0") * 100),
    "animation": save("GIF", save_all=True, append_images=[Image.new("RGB", (12, 8), "blue")] * 600),
    "exif and profile": jpeg(
        segment(0xE1, EXIF + bytes(60_000)) * 3 + segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)) * 255
    ),
    "fill bytes": jpeg(b"\xff" * 1000),
    "texts": png(chunk(b"tEXt", b"Comment\0" + b"a" * 1000) * 400),
    "a long text": png(chunk(b"zTXt", b"c\0\0" + zlib.compress(b"a" * 2_000_000))),
    "small chunks": in_small_chunks(),
    "tiff": save("TIFF", dpi=(300, 300), description="a photo"),
    "big tiff": save("TIFF", big_tiff=True),
    "animated png": save("PNG", save_all=True, append_images=[Image.new("RGB", (12, 8), "blue")] * 600),
    "exif in webp": save("WEBP", exif=EXIF + b"MM\0*\0\0\0\x08\0\0"),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_metadata_is_accepted(name):
    assert read_image(USUAL[name]).shape in ((8, 12, 3), (100, 200, 3))


def test_run_lengths_of_a_large_bitmap_are_refused():
    """Pillow decodes them in Python: 11 kB took 8 seconds."""
    width, height = 20_000, 2_500
    body = b"\1\1\0\0" * height + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    content = b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + bytes(1024) + body
    with pytest.raises(
        ImageError, match=r"20000 x 2500 pixels with run lengths, the limit is 1,000,000: save it as PNG"
    ):
        read_image(content)


def test_an_orientation_beside_other_broken_tags_turns_the_image():
    """ImageWidth as text: Pillow reads it, and could not write it again."""
    entries = struct.pack(">HHI4s", 0x0100, 2, 4, b"abc\0") + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    exif = EXIF + b"MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + bytes(4)
    assert read_image(jpeg(segment(0xE1, exif))).shape == (12, 8, 3)
