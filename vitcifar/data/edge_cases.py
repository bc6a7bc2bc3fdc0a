"""Image files as bytes: edge cases for the decoder, and arrays written without loss."""

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image


def edge_case_files() -> dict[str, bytes]:
    """Deterministic edge-case image files, name -> bytes: transparency, grey, palette, CMYK, 16 bits, EXIF
    orientations 1 to 8, one pixel, very large."""
    colour = Image.fromarray(_gradient(40, 28))
    grey = colour.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    files = {
        "edge/rgba.png": _save(_transparent(colour), "PNG"),
        "edge/grey.png": _save(grey, "PNG"),
        "edge/grey-alpha.png": _save(_transparent(colour).convert("LA"), "PNG"),
        "edge/black-and-white.png": _save(grey.convert("1"), "PNG"),
        "edge/palette.png": _save(colour.quantize(16), "PNG"),
        "edge/palette-transparent.gif": _save(colour.quantize(16), "GIF", transparency=0),
        "edge/cmyk.jpg": _save(colour.convert("CMYK"), "JPEG", quality=90),
        "edge/16-bit.png": _save(deep, "PNG"),
        "edge/one-pixel.png": _save(colour.crop((3, 3, 4, 4)), "PNG"),
        "edge/very-large.jpg": _save(Image.fromarray(_gradient(3000, 2000)), "JPEG", quality=80),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        files[f"edge/exif-{orientation}.jpg"] = _save(colour, "JPEG", quality=90, exif=exif)
    return files


def to_png(image: np.ndarray) -> bytes:
    """An image, uint8 (H, W, 3), as a PNG file."""
    return _save(Image.fromarray(image), "PNG", compress_level=1)


def _gradient(width: int, height: int) -> np.ndarray:
    """A colour gradient, uint8 (H, W, 3), with a different colour in each corner, so that a rotation is visible."""
    x, y = np.linspace(0, 255, width)[None, :], np.linspace(0, 255, height)[:, None]
    return np.stack([x + 0 * y, 0 * x + y, (x + y) / 2], axis=-1).astype(np.uint8)


def _transparent(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(_gradient(*image.size)[:, :, 0]))
    return image


def _save(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
