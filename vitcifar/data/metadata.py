"""Bounds the metadata of an image file before it is decoded.

Pillow 12 reads comments, EXIF headers and segments in Python, in time that grows with the square of their size
(CVE-2026-96643: 4 MiB of repeated EXIF headers take minutes).
"""

import re
from collections.abc import Iterator

from vitcifar.errors import ImageError

MAX_BLOCKS = 500  # of metadata: extensions, segments or chunks
MAX_BYTES = 2**20  # of a GIF's metadata, and of what lies between two segments of a JPEG
MAX_EXIF_HEADERS = 64
EXIF_HEADER = b"Exif\0\0"

# Anything but a marker, then a JPEG marker, possibly after fill bytes. Possessive: linear in time.
JPEG_MARKER = re.compile(rb"(?:[^\xff]++|\xff++\x00)*+\xff++([\x01-\xfe])", re.DOTALL)
JPEG_SCAN = 0xDA
JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}
PNG_PIXELS = {b"IDAT", b"fdAT", b"fcTL"}
GIF_EXTENSION = b"!"


def check_metadata(content: bytes, name: str) -> None:
    """Raise ImageError, starting with `name`, when a file has more metadata than a camera or an editor writes."""
    if content.count(EXIF_HEADER) > MAX_EXIF_HEADERS:
        raise ImageError(f"{name} repeats its EXIF header: save it again without metadata.")
    num_blocks = num_bytes = 0
    for size in _blocks(content):
        num_blocks, num_bytes = num_blocks + 1, num_bytes + size
        if num_blocks > MAX_BLOCKS or num_bytes > MAX_BYTES:
            limits = f"{MAX_BLOCKS} blocks or {MAX_BYTES // 2**20} MiB"
            raise ImageError(f"{name} has more than {limits} of metadata: save it again without metadata.")


def _blocks(content: bytes) -> Iterator[int]:
    """For each block of metadata, its bytes that cost time."""
    for signature, blocks in {
        b"GIF8": _gif_extensions,
        b"\xff\xd8\xff": _jpeg_segments,
        b"\x89PNG": _png_chunks,
    }.items():
        if content.startswith(signature):
            yield from blocks(content)


def _gif_extensions(content: bytes) -> Iterator[int]:
    """The extensions before the first frame, with all their bytes."""
    packed = content[10:11]
    position = 13 + (3 << (packed[0] & 7) + 1 if packed and packed[0] & 0x80 else 0)
    while content[position : position + 1] == GIF_EXTENSION:
        start = position
        position += 2  # and the label
        while size := int.from_bytes(content[position : position + 1]):
            position += 1 + size
        position += 1
        yield position - start


def _jpeg_segments(content: bytes) -> Iterator[int]:
    """The segments before the first scan, with what lies in front of them: Pillow skips it byte by byte."""
    position = 2
    while position < len(content):
        marker = JPEG_MARKER.match(content, position)
        end = marker.end() if marker else len(content)
        yield end - position
        if marker is None or marker[1][0] == JPEG_SCAN:
            return
        position = end
        if marker[1][0] not in JPEG_WITHOUT_LENGTH:
            position += max(2, int.from_bytes(content[end : end + 2]))


def _png_chunks(content: bytes) -> Iterator[int]:
    """The chunks that hold no pixels; Pillow bounds their bytes itself."""
    position = 8
    while position < len(content):
        if content[position + 4 : position + 8] not in PNG_PIXELS:
            yield 0
        position += 12 + int.from_bytes(content[position : position + 4])
