"""Brings 16 bits down to 8: cameras write 10, 12 or 14 bits into files of 16, whose upper 8 bits are nearly black."""

import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vitcifar.errors import ImageError

NUM_BITS = (8, 10, 12, 14, 16)  # that values of 16 bits are measured to have
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE, PLANAR = 258, 262, 281, 284  # tags of TIFF
ZERO_IS_WHITE, SEPARATE = 0, 2  # values of the second and the last
# Pillow gives the upper byte of 16-bit colours; read in the other order, a file gives the lower one.
OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}  # little, big, native
GREY_AND_ALPHA = "LA;16B"  # has no other order: its four bytes are read as colours


def significant_bits(largest: int, declared: int = 0) -> int:
    """How many bits the values of an image have: what the file declares, unless its largest value is beyond that;
    otherwise the fewest of 8, 10, 12, 14 and 16 that hold the largest value."""
    if 8 <= declared <= 16 and largest < 2**declared:
        return declared
    return next(bits for bits in NUM_BITS if largest < 2**bits)


def declared_bits(image: Image.Image) -> int:
    """The significant bits as a PNG's sBIT or a TIFF's tags declare them; 0 if they do not."""
    tags = getattr(image, "tag_v2", {})
    if (bits := int(np.max(tags.get(BITS_PER_SAMPLE, 16)))) < 16:
        return bits
    largest = np.array(tags.get(MAX_SAMPLE_VALUE, 0))
    if largest.dtype.kind == "i" and largest.max() > 0:  # not a text, nor a fraction
        return int(largest.max()).bit_length()
    return int(image.info.get("num_bits", 0))


def grey_to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (mode I;16) -> L."""
    values = np.asarray(image)  # (H, W)
    values = values >> (significant_bits(int(values.max()), declared_bits(image)) - 8)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == ZERO_IS_WHITE:
        values = 255 - values
    return Image.fromarray(values.astype(np.uint8))


def lower_bytes(image: Image.Image, content: bytes, name: str) -> Callable[[], Sequence[Image.Image]] | None:
    """For an opened image of 16-bit colours, what decodes the lower byte of each channel; None for another image.

    Both raise ImageError for separate planes, of which Pillow reads some wrongly, and no lower bytes.
    """
    tiles, tags = getattr(image, "tile", []), getattr(image, "tag_v2", {})  # only files have them
    args = tiles[0].args if tiles else ""
    mode = args if isinstance(args, str) else str(args[0])
    planes = tags.get(PLANAR) == SEPARATE and image.mode != "I;16" and np.max(tags.get(BITS_PER_SAMPLE, 8)) == 16
    error = ImageError(f"{name} has 16-bit colours in separate planes: save it with 8 bits per channel.")
    if planes and not mode.endswith("N"):
        raise error
    if mode == GREY_AND_ALPHA:
        other = "RGBA"
    elif mode[:-1] in ("RGB;16", "RGBA;16", "RGBX;16"):
        other = mode[:-1] + OTHER_ORDER[mode[-1]]
    else:
        return None

    def read() -> Sequence[Image.Image]:
        if planes:
            raise error
        again: Any = Image.open(io.BytesIO(content), formats=[str(image.format)])
        again.tile = [t._replace(args=other if args == mode else (other, *t.args[1:])) for t in again.tile]
        again.load()
        channels: Sequence[Image.Image] = again.split()
        return [channels[1]] * 3 + [channels[3]] if mode == GREY_AND_ALPHA else channels

    return read


def colours_to_8_bits(image: Image.Image, read_lower: Callable[[], Sequence[Image.Image]]) -> None:
    """Scale a decoded image, which has the upper bytes, in place; a full range stays as it is.

    The colours are scaled alike, and transparency by its own largest value.
    """
    highest = np.array(image.getextrema(), int)[:, 1].tolist()  # of each channel
    largest = [value << 8 | 255 for value in highest]
    num_bits = [significant_bits(max(largest[:3]), declared_bits(image))] * 3
    num_bits += [significant_bits(value) for value in largest[3:]]
    if set(num_bits) != {16}:
        channels = zip(image.split(), read_lower(), num_bits, strict=True)
        image.paste(Image.merge(image.mode, [_join(*channel) for channel in channels]))


def _join(upper: Image.Image, lower: Image.Image, num_bits: int) -> Image.Image:
    return Image.fromarray(np.asarray(upper) << 16 - num_bits | np.asarray(lower) >> num_bits - 8)
