"""Reads directories of EXIF and TIFF by hand: Pillow gives up at the first broken entry, or reads for minutes."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from vitcifar.errors import ImageError

EXIF_HEADER = b"Exif\0\0"
TIFF_HEADERS = (
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"II\0*",
    b"MM*\0",
)  # the last two are wrong, and Pillow reads them
MAX_HEADERS = 64  # of EXIF, repeated
MAX_ENTRIES = 500  # of a directory
MAX_BYTES = 2**20  # of all values, which may lie on top of each other, unless the file is longer
MAX_RATIONALS = 10_000
TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # by type
BYTES, INTEGERS, RATIONALS = (1, 7), (1, 3, 4), (5, 10)  # types
ORIENTATION, XMP = 274, 700
# Resolutions and the directories of EXIF, GPS and interoperability: no pixel needs them, and odd ones stop Pillow.
METADATA = (282, 283, 296, 34665, 34853, 40965)
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


class Entry(NamedTuple):
    """An entry of a directory: where it starts, its tag, the type and number of its values, and where they start."""

    position: int
    tag: int
    kind: int
    num_values: int
    values: int

    @property
    def num_bytes(self) -> int:
        return self.num_values * TIFF_BYTES.get(self.kind, 0)


class Directory:
    """The first directory behind the TIFF header at `start`; a broken one has fewer entries."""

    def __init__(self, content: bytes, start: int = 0) -> None:
        self.content = content
        self.order: Literal["little", "big"] = "little" if content[start : start + 2] == b"II" else "big"
        self.width = 8 if 43 in content[start + 2 : start + 4] else 4  # BigTIFF
        self.position = start + self.number(start + self.width, self.width)
        self.first = self.position + (8 if self.width == 8 else 2)  # behind the number of entries
        self.step = 4 + 2 * self.width
        room = max(0, len(content) - self.first) // self.step
        self.num_entries = min(self.number(self.position, self.first - self.position), room)
        self.entries = tuple(self._entries(start))

    def number(self, position: int, size: int) -> int:
        return int.from_bytes(self.content[position : position + size], self.order)

    def _entries(self, start: int) -> Iterator[Entry]:
        for index in range(min(self.num_entries, MAX_ENTRIES)):
            position = self.first + index * self.step
            entry = Entry(
                position,
                self.number(position, 2),
                self.number(position + 2, 2),
                self.number(position + 4, self.width),
                position + 4 + self.width,
            )
            if entry.num_bytes > self.width:
                entry = entry._replace(values=start + self.number(entry.values, self.width))
            yield entry


def read_orientation(exif: bytes, xmp: bytes) -> int:
    """How to turn an image, 1 to 8 as EXIF says, whatever else is broken; 1 if nothing says it."""
    start = _start(exif)
    if exif[start : start + 4] in TIFF_HEADERS:
        directory = Directory(exif, start)
        for entry in directory.entries:
            if entry.tag == ORIENTATION and entry.kind in INTEGERS and entry.num_values:
                return directory.number(entry.values, TIFF_BYTES[entry.kind])
    found = XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def check_exif(exif: bytes, name: str) -> None:
    """Raise ImageError, starting with `name`, when EXIF holds more than a camera or an editor writes."""
    if exif.count(EXIF_HEADER) > MAX_HEADERS:
        raise ImageError(f"{name} repeats its EXIF header: save it again without metadata.")
    start = _start(exif)
    if exif[start : start + 4] in TIFF_HEADERS:
        _check_values(Directory(exif, start), name)


def without_metadata(content: bytes, name: str) -> bytes:
    """A TIFF whose first directory describes the pixels only. Raises ImageError like `check_exif`."""
    directory = Directory(content)
    if directory.num_entries > MAX_ENTRIES:
        raise ImageError(f"{name} has a broken directory of metadata: save it again without metadata.")
    _check_values(directory, name)
    kept = b"".join(
        content[entry.position : entry.position + directory.step]
        for entry in directory.entries
        if entry.tag not in METADATA and (entry.tag != XMP or entry.kind in BYTES)
    )
    end = directory.first + directory.num_entries * directory.step
    size = directory.first - directory.position
    count = (len(kept) // directory.step).to_bytes(size, directory.order)
    following = content[end : end + directory.width]  # where the next directory is
    rest = content[directory.first + len(kept) + len(following) :]
    return content[: directory.position] + count + kept + following + rest


def _start(exif: bytes) -> int:
    """Where the TIFF header is: behind the EXIF headers, of which some writers repeat one, and some write none."""
    start = 0
    while exif.startswith(EXIF_HEADER, start):
        start += len(EXIF_HEADER)
    return start


def _check_values(directory: Directory, name: str) -> None:
    size = len(directory.content)
    # Pillow skips values that do not lie in the file.
    read = [e for e in directory.entries if e.num_bytes > directory.width and e.values + e.num_bytes <= size]
    num_rationals = sum(entry.num_values for entry in read if entry.kind in RATIONALS)
    if sum(entry.num_bytes for entry in read) > max(size, MAX_BYTES) or num_rationals > MAX_RATIONALS:
        raise ImageError(f"{name} has a broken directory of metadata: save it again without metadata.")
