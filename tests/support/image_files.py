"""Image files with metadata that no library would write, put together by hand."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

RED = Image.new("RGB", (12, 8), "red")


def save(kind: str, image: Image.Image = RED, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(chunks: bytes, image: Image.Image = RED) -> bytes:
    content = save("PNG", image)
    return content[:33] + chunks + content[33:]  # after the header


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(segments: bytes, image: Image.Image = RED, *, jfif: bool = True) -> bytes:
    content = save("JPEG", image)
    return content[:2] + segments + content[2 if jfif else 20 :]


def tiff_directory(*entries: tuple[int, int, int, bytes], order: str = ">") -> bytes:
    """A TIFF header and a directory of entries: tag, type, number of values, 4 bytes of values or their position."""
    rows = [struct.pack(f"{order}HHI4s", *entry) for entry in entries]
    header = b"MM\0*" if order == ">" else b"II*\0"
    return header + struct.pack(f"{order}IH", 8, len(rows)) + b"".join(rows) + bytes(4)


def png_of_16_bits(values: np.ndarray, chunks: bytes = b"") -> bytes:
    """Grey (H, W), grey and transparency (H, W, 2), RGB or RGBA."""
    height, width, num_channels = values.reshape(*values.shape[:2], -1).shape
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[num_channels - 1], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


def tiff_of_16_bits(values: np.ndarray, *tags: tuple[int, int, int], order: str = "<", packed: bool = False) -> bytes:
    """Grey (H, W), RGB or RGBA in one strip, with more tags: number, type, value."""
    height, width, num_channels = values.reshape(*values.shape[:2], -1).shape
    strip = values.astype(f"{order}u2").tobytes()
    strip = zlib.compress(strip) if packed else strip
    strip += bytes(len(strip) % 2)
    bits = struct.pack(f"{order}{num_channels}H", *[16] * num_channels)
    known = {256: width, 257: height, 259: 8 if packed else 1, 262: 1 if num_channels == 1 else 2, 273: 8}
    known |= {277: num_channels, 278: height, 279: len(strip)} | ({338: 2} if num_channels == 4 else {})
    entries = {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in known.items()}
    entries |= {tag: struct.pack(f"{order}HHII", tag, kind, 1, value) for tag, kind, value in tags}
    start = struct.pack(f"{order}I", 8 + len(strip))
    entries[258] = struct.pack(f"{order}HHI", 258, 3, num_channels) + (
        bits.ljust(4, b"\0") if num_channels == 1 else start
    )
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(strip) + len(bits))
    rows = b"".join(entry for _, entry in sorted(entries.items()))
    return header + strip + bits + struct.pack(f"{order}H", len(entries)) + rows + bytes(4)


def tiff_of_16_bit_planes(values: np.ndarray, *, packed: bool = False) -> bytes:
    """RGB (H, W, 3), one strip for each colour."""
    height, width, _ = values.shape
    strips = [values[..., channel].astype("<u2").tobytes() for channel in range(3)]
    strips = [zlib.compress(strip) if packed else strip for strip in strips]
    starts = [8 + sum(map(len, strips[:channel])) for channel in range(4)]
    bits, positions, sizes = starts[3], starts[3] + 6, starts[3] + 18
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 4, 1, 8 if packed else 1)]
    entries += [(262, 4, 1, 2), (273, 4, 3, positions), (277, 4, 1, 3), (278, 4, 1, height), (279, 4, 3, sizes)]
    entries += [(284, 4, 1, 2)]
    lists = struct.pack("<3H3I3I", 16, 16, 16, *starts[:3], *map(len, strips))
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    header = b"II*\0" + struct.pack("<I", starts[3] + len(lists))
    return header + b"".join(strips) + lists + struct.pack("<H", len(entries)) + rows + bytes(4)
