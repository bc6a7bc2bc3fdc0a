"""Metadata never costs the image, unless there is so much that it would be read in quadratic time."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.image_files import chunk, jpeg, png, save, segment, tiff_directory

from vitcifar.data.image import read_image
from vitcifar.data.metadata import MAX_BLOCKS
from vitcifar.errors import ImageError

NUM_BYTES = 4 * 2**20


def gif(extensions: bytes) -> bytes:
    content = save("GIF")
    start = 13 + (3 << (content[10] & 7) + 1)
    return content[:start] + extensions + content[start:]


def webp(chunks: bytes) -> bytes:
    content = save("WEBP")
    return content[:4] + struct.pack("<I", len(content) + len(chunks) - 8) + content[8:] + chunks


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
    "chunks in webp": webp(filled(b"prVt\0\0\0\0")),
    "markers between scans": save("JPEG")[:-2] + filled(b"\xff\x01"),
    "private chunks": png(filled(chunk(b"prVt", b""))),
    "colour profiles": png(filled(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**6))))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_metadata_without_measure_is_refused(name):
    """Before Pillow reads it, which takes up to minutes, and then answers with an image."""
    with pytest.raises(ImageError, match=r"^a\.png .*: save it again (without metadata|as a baseline JPEG)\.$"):
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


LONG = np.random.default_rng(0).bytes(1_250_000).hex().encode()  # 2.5 MB that hardly compress
PNG_CHUNKS = {
    "tEXt": chunk(b"tEXt", b"c\0" + LONG),
    "iTXt": chunk(b"iTXt", b"c\0\0\0\0\0" + LONG),
    "compressed iTXt": chunk(b"iTXt", b"c\0\1\0\0\0" + zlib.compress(LONG)),
    "zTXt": chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(20_000_000))),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(20_000_000))),
    "iCCP": chunk(b"iCCP", b"p\0\0" + zlib.compress(LONG)),
    "long iCCP": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(20_000_000))),
    "unknown compression": chunk(b"iCCP", b"p\0\7abc") + chunk(b"zTXt", b"c\0\7abc"),
    "no compression": chunk(b"iCCP", b"p\0\0abc") + chunk(b"zTXt", b"c\0\0abc"),
    "wrong checksum": chunk(b"tEXt", b"c\0abc")[:-1] + b"\0",
    "a text named like Pillow's own": b"".join(
        chunk(b"tEXt", key + b"\0abc") for key in (b"transparency", b"exif", b"interlace", b"bbox", b"icc_profile")
    ),
    "EXIF as no hexadecimal text": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n8\nxyz"),
    "nothing but a kind": b"".join(
        chunk(kind, b"")
        for kind in (b"iCCP", b"pHYs", b"sRGB", b"gAMA", b"cHRM", b"acTL", b"fcTL", b"eXIf", b"sBIT", b"tEXt", b"iTXt")
    ),
}


@pytest.mark.parametrize("name", PNG_CHUNKS)
def test_no_chunk_of_metadata_costs_a_png(name):
    assert (read_image(png(PNG_CHUNKS[name])) == (255, 0, 0)).all()


JPEG_SEGMENTS = {
    "JFIF": segment(0xE0, b"JFIF\0"),
    "Adobe": segment(0xEE, b"Adobe"),
    "profile": segment(0xE2, b"ICC_PROFILE\0") + segment(0xE2, b"ICC_PROFILE\0\1"),
    "part of a profile": segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(999)),
    "Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\4\4"),
    "images without entries": segment(0xE2, b"MPF\0" + tiff_directory((0xB001, 4, 1, bytes([0, 0, 0, 2])))),
    "images cut off": segment(
        0xE2, b"MPF\0" + tiff_directory((0xB001, 4, 1, bytes([0, 0, 0, 2])), (0xB002, 7, 4, b"abcd"))
    ),
    "nothing": segment(0xE1, b"") + segment(0xFE, b""),
    "scans in a comment": segment(0xFE, b"\xff\xda" * 999),
    "scans in a thumbnail": segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0" + b"\xff\xda\xff\xd9" * 999),
}


@pytest.mark.parametrize("jfif", [True, False])
@pytest.mark.parametrize("name", JPEG_SEGMENTS)
def test_no_segment_of_metadata_costs_a_jpeg(name, jfif):
    np.testing.assert_array_equal(read_image(jpeg(JPEG_SEGMENTS[name], jfif=jfif)), read_image(save("JPEG")))


def test_a_webp_that_was_cut_off_in_its_metadata_is_read():
    content = save("WEBP", exif=bytes(999), lossless=True)
    assert (read_image(content[:-500]) == (255, 0, 0)).all()


VIDEO = b"\0\0\0\x18ftypmp42" + np.random.default_rng(0).bytes(20_000) + b"\xff\xda" * 999
BEHIND = {
    "video": VIDEO,
    "images": save("JPEG", exif=EXIF + tiff_directory((0x0112, 3, 1, b"\0\6\0\0"))) * 300,
    "zeros": bytes(100_000),
    "marks of EXIF": b"EXIF" * 999,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("behind", BEHIND)
def test_what_lies_behind_an_image_is_not_read(kind, behind):
    """A phone's JPEG with a short video, a panorama's or a second lens's images."""
    content = save(kind)
    np.testing.assert_array_equal(read_image(content + BEHIND[behind]), read_image(content))


def test_a_video_behind_a_progressive_jpeg_with_restarts_is_not_read():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8))
    content = save("JPEG", noise, progressive=True, restart_marker_blocks=1, quality=95)
    np.testing.assert_array_equal(read_image(content + VIDEO), np.asarray(Image.open(io.BytesIO(content))))
