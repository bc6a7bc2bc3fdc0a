"""Takes the metadata of an image file apart from its pixels, so that it never costs the image, and bounds it.

Pillow rejects a file for a text that is too long, a wrong checksum or a short segment of metadata. And Pillow 12 reads
comments, EXIF headers and segments in Python, in time that grows with the square of their size (CVE-2026-96643: 4 MiB
of repeated EXIF headers take minutes). So it gets a PNG or JPEG without them.
"""

import contextlib
import itertools
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from vitcifar.data.exif import EXIF_HEADER, TIFF_HEADERS, without_metadata
from vitcifar.errors import ImageError

MAX_BLOCKS = 500  # of metadata: extensions, segments or chunks
MAX_BYTES = 2**20  # of a GIF's metadata, and of what lies between two segments of a JPEG
MAX_SCANS = 200  # of a progressive JPEG: each costs a pass over all pixels and can be a few bytes long
MAX_FRAMES = 10_000  # of an animation: behind them no metadata is looked for
MAX_INFLATED = 4 * 2**20  # bytes of a colour profile, or of another block that was compressed

# Anything but a marker, then a JPEG marker, possibly after fill bytes. Possessive: linear in time.
JPEG_MARKER = re.compile(rb"(?:[^\xff]++|\xff++\x00)*+\xff++([\x01-\xfe])", re.DOTALL)
JPEG_AFTER_SCAN = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # neither an escaped byte nor a restart
JPEG_SCAN, JPEG_END, JPEG_COMMENT = 0xDA, 0xD9, b"\xfe"
JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}
JPEG_METADATA = {*range(0xE0, 0xF0), 0xFE}
JPEG_COLOURS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}  # segments by which libjpeg knows them, and their length
JPEG_XMP, JPEG_PROFILE = b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
PNG_PIXELS, PNG_FRAME = (b"IDAT", b"fdAT"), b"fcTL"
PNG_EXIF, PNG_XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"  # keywords of texts
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PNG_METADATA = (*PNG_TEXTS, b"eXIf", b"iCCP", b"sBIT")  # that matters
WEBP_METADATA, WEBP_FRAME = (b"ICCP", b"EXIF", b"XMP "), b"ANMF"
GIF_EXTENSION, GIF_FRAME, GIF_END = b"!", b",", b";"


class Block(NamedTuple):
    """A chunk, segment or extension of a file, and where it, its data and the next one start."""

    kind: bytes
    start: int
    data: int
    end: int
    cost: int | None  # bytes that take time to read; None for pixels, which are not counted


def split_metadata(content: bytes, name: str) -> tuple[bytes, dict[str, Any]]:
    """An image file without its metadata, and what of that matters, named as in Pillow's `info`.

    That is `exif`, `xmp`, `icc_profile` and `num_bits`, which a PNG's values have; for other formats than PNG and JPEG
    Pillow finds it. Raises ImageError, starting with `name`, when a file has more metadata than cameras or editors
    write.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return _split_jpeg(content, name)
    if content.startswith(b"\x89PNG"):
        return _split_png(content, name)
    if content.startswith(b"GIF8"):
        for _ in _bounded(_gif_extensions(content), name):
            pass
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _whole_webp(content, name), {}
    if content[:4] in TIFF_HEADERS:
        return without_metadata(content, name), {}
    return content, {}


def _bounded(blocks: Iterator[Block], name: str) -> Iterator[Block]:
    num_blocks = num_bytes = 0
    for block in blocks:
        if block.cost is not None:
            num_blocks, num_bytes = num_blocks + 1, num_bytes + block.cost
        if num_blocks > MAX_BLOCKS or num_bytes > MAX_BYTES:
            limits = f"{MAX_BLOCKS} blocks or {MAX_BYTES // 2**20} MiB"
            raise ImageError(f"{name} has more than {limits} of metadata: save it again without metadata.")
        yield block


def _gif_extensions(content: bytes) -> Iterator[Block]:
    """The extensions before the first frame, and what lies between them; all their bytes cost time."""
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
        yield Block(kind, start, start, position, position - start)


def _split_jpeg(content: bytes, name: str) -> tuple[bytes, dict[str, Any]]:
    kept, exif, profile, xmp, position = [content[:2]], list[bytes](), list[bytes](), b"", 2
    for kind, _, data, position, _ in _bounded(_jpeg_segments(content), name):
        value = content[data + 2 : position]
        if kind[0] not in JPEG_METADATA:
            kept.append(content[data - 2 : position])
        elif kind[0] in JPEG_COLOURS:
            mark, size = JPEG_COLOURS[kind[0]]
            kept.append(content[data - 2 : position] if value.startswith(mark) and len(value) >= size else b"")
        elif kind[0] == 0xE1 and value.startswith(EXIF_HEADER):
            exif.append(value.removeprefix(EXIF_HEADER))
        elif kind[0] == 0xE1 and value.startswith(JPEG_XMP):
            xmp = value.removeprefix(JPEG_XMP)
        elif kind[0] == 0xE2 and value.startswith(JPEG_PROFILE) and len(value) > 14:
            profile.append(value[12:])  # its number, how many there are, and a part of the profile
    kept.append(content[position : _end_of_jpeg(content, position, name)])
    whole = sorted(profile) if profile and profile[0][1] == len(profile) else []
    return b"".join(kept), {
        "exif": b"".join(exif),
        "xmp": xmp,
        "icc_profile": b"".join(part[2:] for part in whole),
    }


def _jpeg_segments(content: bytes) -> Iterator[Block]:
    """The segments up to the first scan; what lies in front of one costs time."""
    position = 2
    while position < len(content):
        marker = JPEG_MARKER.match(content, position)
        start, data = position, marker.end() if marker else len(content)
        kind = marker[1] if marker else JPEG_COMMENT
        position = data
        if kind[0] not in JPEG_WITHOUT_LENGTH:
            position += max(2, int.from_bytes(content[data : data + 2]))
        yield Block(kind, start, data, position, data - start)
        if kind[0] == JPEG_SCAN:
            return


def _end_of_jpeg(content: bytes, position: int, name: str) -> int:
    """Where the image ends whose first scan starts at `position`: behind it may lie a video, or other images."""
    num_scans, num_others = 1, 0
    while marker := JPEG_AFTER_SCAN.search(content, position):
        kind, position = marker[1][0], marker.end()
        if kind == JPEG_END:
            return position
        num_scans, num_others = num_scans + (kind == JPEG_SCAN), num_others + (kind != JPEG_SCAN)
        if num_scans > MAX_SCANS or num_others > MAX_BLOCKS + 4 * MAX_SCANS:
            raise ImageError(f"{name} is a JPEG with more than {MAX_SCANS} scans: save it again as a baseline JPEG.")
        if kind not in JPEG_WITHOUT_LENGTH:
            position += int.from_bytes(content[position : position + 2])
    return len(content)


def _split_png(content: bytes, name: str) -> tuple[bytes, dict[str, Any]]:
    view = memoryview(content)
    kept, found = [view[:8]], dict[bytes, bytes]()
    for kind, start, data, end, _ in _bounded(_png_chunks(content), name):
        if kind[:1].isupper() or kind == b"tRNS":  # what a decoder must know, and transparency
            kept.append(view[start:end])
        elif kind in PNG_METADATA and zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(view[end - 4 : end]):
            value = content[data : end - 4]
            if kind not in PNG_TEXTS:
                found.setdefault(kind, value)
            elif (keyword := value.partition(b"\0")[0]) in (PNG_EXIF, PNG_XMP) and keyword not in found:
                found[keyword] = _png_text(kind, value.partition(b"\0")[2])
    exif = b""
    with contextlib.suppress(ValueError):  # "\nexif\n    1234\n", then hexadecimal digits, as ImageMagick writes it
        exif = bytes.fromhex("".join(found.get(PNG_EXIF, b"").decode().split("\n")[3:]))
    bits = found.get(b"sBIT", b"")
    return b"".join(kept), {
        "exif": found.get(b"eXIf", exif),
        "xmp": found.get(PNG_XMP, b""),
        "icc_profile": _inflate(found.get(b"iCCP", b"").partition(b"\0")[2][1:]),
        "num_bits": max(bits[: len(bits) - 1 | 1], default=0),  # an even number of them: the last is of transparency
    }


def _png_chunks(content: bytes) -> Iterator[Block]:
    """The chunks up to the last of the image; Pillow bounds the bytes of those that hold no pixels."""
    position, started = 8, False
    while position < len(content):
        size, kind = int.from_bytes(content[position : position + 4]), content[position + 4 : position + 8]
        started |= kind == b"IDAT"
        pixels = started and (kind == PNG_FRAME or (kind in PNG_PIXELS and size > 0))
        start, position = position, position + 12 + size
        yield Block(kind, start, start + 8, position, None if pixels else 0)
        if kind == b"IEND":
            return


def _whole_webp(content: bytes, name: str) -> bytes:
    """A WebP without the metadata in which it was cut off, if it was: libwebp would reject it."""
    for kind, start, _, end, _ in _bounded(itertools.islice(_webp_chunks(content), MAX_FRAMES), name):
        if end > len(content) and kind in WEBP_METADATA:
            return content[:4] + (start - 8).to_bytes(4, "little") + content[8:start]
    return content


def _webp_chunks(content: bytes) -> Iterator[Block]:
    """The chunks; frames are not counted."""
    position, end = 12, 8 + int.from_bytes(content[4:8], "little")
    while position < min(end, len(content)):
        size, kind = int.from_bytes(content[position + 4 : position + 8], "little"), content[position : position + 4]
        start, position = position, position + 8 + size + size % 2
        yield Block(kind, start, start + 8, start + 8 + size, None if kind == WEBP_FRAME and size > 24 else 0)


def _png_text(kind: bytes, value: bytes) -> bytes:
    """The text behind the keyword of a chunk."""
    if kind == b"tEXt":
        return value
    if kind == b"zTXt":
        return _inflate(value[1:])
    text = value[2:].split(b"\0", 2)[-1]  # behind the language and the translated keyword
    return _inflate(text) if value[:1] == b"\1" else text


def _inflate(value: bytes) -> bytes:
    """Decompress; nothing when that fails or is too long."""
    with contextlib.suppress(zlib.error):
        inflater = zlib.decompressobj()
        inflated = inflater.decompress(value, MAX_INFLATED)
        return b"" if inflater.unconsumed_tail else inflated
    return b""
