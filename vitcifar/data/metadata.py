"""Bounds the metadata of an image file before it is decoded.

Pillow 12 reads comments, EXIF headers and segments in Python, in time that grows with the square of their size
(CVE-2026-96643: 4 MiB of repeated EXIF headers take minutes).
"""

import re
from collections.abc import Iterator
from typing import Literal

from vitcifar.errors import ImageError

MAX_BLOCKS = 500  # of metadata: extensions, segments or chunks
MAX_BYTES = 2**20  # of a GIF's metadata, and of what lies between two segments of a JPEG
MAX_DIRECTORIES = 64  # marks of EXIF in a file, found or repeated
EXIF_HEADER = b"Exif\0\0"

# Anything but a marker, then a JPEG marker, possibly after fill bytes. Possessive: linear in time.
JPEG_MARKER = re.compile(rb"(?:[^\xff]++|\xff++\x00)*+\xff++([\x01-\xfe])", re.DOTALL)
JPEG_SCAN = 0xDA
JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}
PNG_PIXELS, PNG_FRAME = (b"IDAT", b"fdAT"), b"fcTL"
GIF_EXTENSION, GIF_FRAME, GIF_END = b"!", b",", b";"
TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What stands in front of EXIF in JPEG, PNG and WebP (there with its size), and in front of a camera's list of images.
DIRECTORY_MARKS = {EXIF_HEADER: 6, b"eXIf": 4, b"EXIF": 8, b"MPF\0": 4}
TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # by type
TIFF_RATIONALS = (5, 10)
MAX_RATIONALS = 10_000


def check_metadata(content: bytes, name: str) -> None:
    """Raise ImageError, starting with `name`, when a file has more metadata than a camera or an editor writes."""
    for start in _directories(content, name):
        _check_directory(content, start, name)
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
    """The extensions before the first frame, and what lies between them, with all their bytes."""
    packed = content[10:11]
    position = 13 + (3 << (packed[0] & 7) + 1 if packed and packed[0] & 0x80 else 0)
    while position < len(content):
        start, kind = position, content[position : position + 1]
        if kind in (GIF_FRAME, GIF_END):
            return
        position += 1
        if kind == GIF_EXTENSION:
            position += 1  # its label
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
    position, started = 8, False
    while position < len(content):
        size, kind = int.from_bytes(content[position : position + 4]), content[position + 4 : position + 8]
        started |= kind == b"IDAT"
        if not (started and (kind == PNG_FRAME or (kind in PNG_PIXELS and size))):
            yield 0
        position += 12 + size


def _directories(content: bytes, name: str) -> Iterator[int]:
    """Where a TIFF header stands: at the start of the file, or where a format keeps EXIF."""
    starts = [0]
    for mark, length in DIRECTORY_MARKS.items():
        position = -1
        while (position := content.find(mark, position + 1)) >= 0:
            starts.append(position + length)
            if len(starts) > MAX_DIRECTORIES:
                raise ImageError(f"{name} repeats its EXIF header: save it again without metadata.")
    yield from (start for start in starts if content[start : start + 4] in TIFF_HEADERS)


def _check_directory(content: bytes, start: int, name: str) -> None:
    """Check the TIFF directory behind a TIFF header at `start`: its values may lie on top of each other."""
    order: Literal["little", "big"] = "little" if content[start : start + 2] == b"II" else "big"
    big = 43 in content[start + 2 : start + 4]  # BigTIFF
    width = 8 if big else 4

    def number(position: int, size: int) -> int:
        return int.from_bytes(content[position : position + size], order)

    directory = start + number(start + (8 if big else 4), width)
    first, length = directory + (8 if big else 2), 4 + 2 * width
    num_entries = min(number(directory, 8 if big else 2), max(0, len(content) - first) // length)
    num_bytes = num_rationals = 0
    for entry in range(first, first + length * min(num_entries, MAX_BLOCKS), length):
        kind, count = number(entry + 2, 2), number(entry + 4, width)
        size = count * TIFF_BYTES.get(kind, 0)
        if size > width and start + number(entry + 4 + width, width) + size <= len(content):  # else Pillow skips it
            num_bytes += size
            num_rationals += count if kind in TIFF_RATIONALS else 0
    if num_entries > MAX_BLOCKS or num_bytes > len(content) or num_rationals > MAX_RATIONALS:
        raise ImageError(f"{name} has a broken directory of metadata: save it again without metadata.")
