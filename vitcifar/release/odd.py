"""Files of every unusual kind that a door may be handed, made here, the same every time."""

import io
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag


def odd_files() -> dict[str, bytes]:
    """Name -> the bytes of a file: transparency, grey, palette, CMYK, 16 bits, EXIF 1 to 8, one pixel, very large."""
    colour = Image.fromarray(_gradient(40, 28))
    grey = colour.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    files = {
        "odd/rgba.png": _save(_transparent(colour), "PNG"),
        "odd/grey.png": _save(grey, "PNG"),
        "odd/grey-alpha.png": _save(_transparent(colour).convert("LA"), "PNG"),
        "odd/black-and-white.png": _save(grey.convert("1"), "PNG"),
        "odd/palette.png": _save(colour.quantize(16), "PNG"),
        "odd/palette-transparent.gif": _save(colour.quantize(16), "GIF", transparency=0),
        "odd/cmyk.jpg": _save(colour.convert("CMYK"), "JPEG", quality=90),
        "odd/16-bit.png": _save(deep, "PNG"),
        "odd/one-pixel.png": _save(colour.crop((3, 3, 4, 4)), "PNG"),
        "odd/very-large.jpg": _save(Image.fromarray(_gradient(3000, 2000)), "JPEG", quality=80),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        files[f"odd/exif-{orientation}.jpg"] = _save(colour, "JPEG", quality=90, exif=exif)
    return files


def to_png(image: np.ndarray) -> bytes:
    """A picture uint8 (H, W, 3) as the bytes of a file that loses nothing."""
    return _save(Image.fromarray(image), "PNG", compress_level=1)


def _gradient(width: int, height: int) -> np.ndarray:
    """Each corner of its own colour, so that turning a picture shows: uint8 (H, W, 3)."""
    across, down = np.linspace(0, 255, width)[None, :], np.linspace(0, 255, height)[:, None]
    channels = [across + 0 * down, 0 * across + down, (across + down) / 2]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _transparent(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    picture.putalpha(Image.fromarray(_gradient(*picture.size)[:, :, 0]))
    return picture


def _save(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
