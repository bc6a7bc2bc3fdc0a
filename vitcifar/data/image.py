"""Decode one image, from a file or from bytes, to RGB uint8 (H, W, 3). Every image of the project is read here.

Limits are checked on the header, before decoding: a file of a few kilobytes can expand to gigabytes.
"""

import contextlib
import functools
import io
import os
import re
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, UnidentifiedImageError

from vitcifar.data.bit_depth import colours_to_8_bits, grey_to_8_bits, lower_bytes
from vitcifar.data.colour_profile import find_transform, to_srgb
from vitcifar.data.exif import TIFF_HEADERS, check_exif, read_orientation
from vitcifar.data.metadata import split_metadata
from vitcifar.errors import ConfigError, ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MORE_FORMATS = "VITCIFAR_MORE_FORMATS"  # a list of others, to read them too: few images come in them
# How a file of each starts, and the endings of its name. No ICO: a file inside it would escape the limits.
OTHER_FORMATS = {
    "TIFF": (re.compile(b"|".join(map(re.escape, TIFF_HEADERS))), ()),  # ".tif" is always taken for an image
    "AVIF": (re.compile(rb".{4}ftypavi[fs]", re.DOTALL), (".avif",)),
    "JPEG2000": (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), (".jp2", ".j2k")),
    "PPM": (re.compile(rb"P(?:[0-6f]|yP|yRGBA|[0y]CMYK)\s[\s\d#]"), (".ppm", ".pgm", ".pbm", ".pnm")),
    "TGA": (re.compile(rb"(?!)"), (".tga",)),  # nothing marks it
}
PPM_GAP = rb"(?:\s|#[^\r\n]{0,1000}+[\r\n]){1,100}+"  # Pillow reads any number of comments, byte by byte
PPM_HEADER = re.compile(rb"P(?:4(?:%s\d{1,10}){2}|[56](?:%s\d{1,10}){3})\s" % (PPM_GAP, PPM_GAP))  # P1 to P3 are text
MAX_BYTES = 32 * 2**20
MAX_SIDE = 20_000  # pixels
MAX_PIXELS = 50_000_000
MAX_ASPECT = 32  # longer side / shorter side
LONGEST_SIDE = 1024  # pixels; larger images are scaled down to this

MAX_RLE_PIXELS = 1_000_000  # of a BMP with run lengths, or a PPM of odd range, which Pillow decodes in Python
MAX_NAME = 100  # characters of a file name in a message
ORIENTATIONS = {  # of EXIF
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Unsupported files that users upload: offset of the signature, signature in lower case, name.
UNSUPPORTED = (
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftypmif", "a HEIC image"),
    (0, b"%pdf", "a PDF"),
    (0, b"<svg", "an SVG drawing"),
)


@functools.cache
def _set_up_pillow() -> None:
    """Pillow warns of many pixels, which we reject with an error, and of harmless metadata.

    Once for the process, on first use: `warnings.catch_warnings` around each call is not thread-safe.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded in processes and threads of ours


def read_image(source: bytes | Path, name: str = "") -> np.ndarray:
    """Decode one image to RGB: turned as EXIF says, colours in sRGB, transparency over white, longer side at most 1024
    pixels.

    Returns uint8 (H, W, 3). An animation gives its first frame; 16 bits are scaled to 8 by the range that the file
    declares or its values have. Raises ImageError with a message that starts with `name` (default: the path).
    """
    name = readable_name(source, name)
    image, content = open_image(source, name)
    return convert_image(image, name, content)


def open_image(source: bytes | Path, name: str) -> tuple[Image.Image, bytes]:
    """Read the header only, and check it; also returns the content without its metadata. Raises ImageError."""
    _set_up_pillow()
    content = source if isinstance(source, bytes) else read_file(source, name)
    if not content:
        raise ImageError(f"{name} is empty.")
    check_size(len(content), name)
    formats = known_formats()
    _check_kind(content, name, formats)
    content, info = split_metadata(content, name)
    image = _open(content, name, formats)
    image.info.update(info)
    check_exif(image.info.get("exif", b""), name)
    _check_header(image, name)
    return image, content


def known_formats() -> tuple[str, ...]:
    """The formats that are read, as Pillow names them. Raises ConfigError for another in `MORE_FORMATS`."""
    text = os.environ.get(MORE_FORMATS, "none")
    more = [name for part in text.split(",") if (name := part.strip().upper()) not in ("", "NONE")]
    if unknown := [name for name in more if name not in OTHER_FORMATS]:
        choices = ", ".join(OTHER_FORMATS)
        raise ConfigError(f"{MORE_FORMATS} names {unknown[0]!r}: set it to some of {choices}, or to none.")
    return (*FORMATS, *(name for name in OTHER_FORMATS if name in more))  # TGA last: much looks like one


def known_endings() -> tuple[str, ...]:
    """The endings of the names of files that are taken for images, in lower case."""
    return ENDINGS + tuple(ending for name in known_formats() for ending in OTHER_FORMATS.get(name, ((), ()))[1])


def image_shape(path: Path) -> tuple[int, int, int] | None:
    """(H, W, 3) of what `read_image` decodes, before EXIF turns it; None for a file that is not an image."""
    try:
        width, height = _bounded(open_image(path, readable_name(path))[0].size)
    except ImageError:
        return None
    return height, width, 3


def readable_name(source: bytes | Path, name: str = "") -> str:
    """What a message calls an image: its name or path, printable; the middle of a long one is left out."""
    name = name or (str(source) if isinstance(source, Path) else "The image")
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 40]}…{name[-39:]}"
    return name if name.isprintable() else repr(name)


def convert_image(image: Image.Image, name: str = "The image", content: bytes = b"") -> np.ndarray:
    """An opened PIL image -> uint8 (H, W, 3), by the rules of `read_image`; may modify the image.

    Without the `content` of the file, 16-bit colours give their upper bytes. Raises ImageError.
    """
    try:
        transform, lower = find_transform(image), lower_bytes(image, content, name) if content else None
        image.draft("RGB", _bounded(image.size))  # a large JPEG is decoded at 1/2, 1/4 or 1/8: faster, never too small
        image.load()
        if lower:
            colours_to_8_bits(image, lower)
        image = _to_8_bits(_upright(image), name, keep_cmyk=bool(transform))
        size = _bounded(image.size)
        if size != image.size:  # before the conversion to RGB, which would need four channels of a large image
            image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
        if transform:
            image = to_srgb(image, transform)
        if image.mode == "RGBA":
            background = Image.new("RGB", image.size, "white")
            background.paste(image, mask=image)
            image = background
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # (H, W, 3)
    except ImageError:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise ImageError(f"{name} is broken or incomplete: its pixels cannot be decoded ({_reason(error)}).") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says, or XMP; Pillow has already turned a TIFF."""
    exif, xmp = (value if isinstance(value, bytes) else b"" for value in map(image.info.get, ("exif", "xmp")))
    orientation = read_orientation(exif, xmp)
    if not exif and not xmp:  # an image that was made by a program, and may hold anything
        with contextlib.suppress(Exception):
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return image.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else image


def read_file(path: Path, name: str) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block forever
            raise ImageError(f"{name} is not a file.")
        check_size(status.st_size, name)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {name}.") from error
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # a NUL in it
        raise ImageError(f"{name} cannot be the path of a file.") from error


def check_size(num_bytes: int, name: str, max_bytes: int = MAX_BYTES) -> None:
    """Raises ImageError for a file with more bytes than are read."""
    if num_bytes > max_bytes:
        size, limit = f"{num_bytes / 2**20:.0f} MiB", f"{max_bytes / 2**20:g} MiB"
        raise ImageError(f"{name} is {size}, the limit is {limit}: save a smaller image, or as JPEG.")


def _open(content: bytes, name: str, formats: tuple[str, ...]) -> Image.Image:
    """Read the header only; the content decides the format, not the file name."""
    try:
        return Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has more than {MAX_PIXELS:,} pixels, the limit: scale it down.") from error
    except UnidentifiedImageError as error:
        start = content.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
        kinds = [kind for offset, mark, kind in UNSUPPORTED if start.startswith(mark, offset)]
        kind = kinds[0] if kinds else "not a supported image"
        choices = f"{', '.join(formats[:-1])} or {formats[-1]}"
        raise ImageError(f"{name} is {kind}, or it is broken: save it as {choices}.") from error
    except Exception as error:  # Pillow may raise anything on a broken header
        raise ImageError(f"{name} is broken: its header cannot be read ({_reason(error)}).") from error


def _check_kind(content: bytes, name: str, formats: tuple[str, ...]) -> None:
    """Raises ImageError for a format that is not read, and for a PPM that Pillow would read in Python."""
    kind = next((kind for kind, (start, _) in OTHER_FORMATS.items() if start.match(content)), "")
    if kind and kind not in formats:
        what = f"{name} is {'an' if kind == 'AVIF' else 'a'} {kind} image"
        raise ImageError(f"{what}: save it as PNG, or set {MORE_FORMATS}={kind} for files you trust.")
    if kind == "PPM" and not PPM_HEADER.match(content):
        raise ImageError(f"{name} is a PPM image in text, or its header is long or broken: save it as PNG.")


def _check_header(image: Image.Image, name: str) -> None:
    width, height = image.size
    what = f"{name} is {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise ImageError(f"{what}, the limit is {MAX_PIXELS:,} pixels in total: scale it down.")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{what}, the limit is {MAX_SIDE:,} per side: scale it down.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{what}: the longer side can be at most {MAX_ASPECT} times the shorter one, crop it.")
    if image.format == "BMP" and image.info.get("compression") in (1, 2) and width * height > MAX_RLE_PIXELS:
        raise ImageError(f"{what} with run lengths, the limit is {MAX_RLE_PIXELS:,}: save it as PNG.")
    codecs = [tile.codec_name for tile in getattr(image, "tile", ())]
    if image.format == "PPM" and codecs == ["ppm"] and width * height > MAX_RLE_PIXELS:
        raise ImageError(f"{what} of a range other than 255, the limit is {MAX_RLE_PIXELS:,}: save it as PNG.")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _to_8_bits(image: Image.Image, name: str, *, keep_cmyk: bool) -> Image.Image:
    """To L, RGB, RGBA or, for its profile, CMYK. Pillow alone saturates 16 bits to white and makes fractions black."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # which Pillow scales to 16
        return grey_to_8_bits(image)
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has 32-bit or signed pixel values of unknown range: save it with 8 bits per channel.")
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "LAB":
        raise ImageError(f"{name} has LAB colours: save it as RGB.")
    if image.mode == "CMYK" and keep_cmyk:
        return image
    return image.convert("L" if image.mode in ("1", "L") else "RGB")
