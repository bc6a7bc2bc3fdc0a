"""One image, from a file or from bytes, to RGB uint8 (H, W, 3); every door of the project comes through here.

The limits are held against the header, before anything is decoded: a few kilobytes can ask for gigabytes.
"""

import io
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vitcifar.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_BYTES = 32 * 2**20
MAX_SIDE = 20_000  # pixels
MAX_PIXELS = 50_000_000
MAX_ASPECT = 32  # longer side / shorter side
MAX_SCANS = 200  # of a progressive JPEG: each one costs a pass over all pixels, and may be a few bytes long
LONGEST_SIDE = 1024  # pixels; what is larger is scaled down to this

# What people upload besides images that can be read: where it is found in the file, what it looks like, its name.
KNOWN_OTHERS = (
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftypmif", "a HEIC image"),
    (4, b"ftypavi", "an AVIF image"),
    (0, b"%PDF", "a PDF"),
    (0, b"<svg", "an SVG drawing"),
)

# What Pillow warns of (many pixels, odd metadata) we refuse in one sentence, or it does no harm. A filter for each
# call would not be safe with threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def read_image(source: bytes | Path, name: str = "") -> np.ndarray:
    """Decode one image: turned upright, over white where it is transparent, the longer side at most 1024 pixels.

    Returns uint8 (H, W, 3). An animation gives its first frame, 16-bit grey is scaled to 8 bits. Raises ImageError
    with one sentence that starts with `name` (the path, when nothing is given).
    """
    name = name or (str(source) if isinstance(source, Path) else "The image")
    name = name if name.isprintable() else repr(name)
    content = source if isinstance(source, bytes) else _read_file(source, name)
    if not content:
        raise ImageError(f"{name} is empty.")
    if len(content) > MAX_BYTES:
        raise _too_many_bytes(name, len(content))
    image = _open(content, name)
    _check_header(image, content, name)
    return convert_image(image, name)


def convert_image(image: Image.Image, name: str = "The image") -> np.ndarray:
    """An opened PIL image -> uint8 (H, W, 3), by the rules of `read_image`; may modify the image. Raises ImageError."""
    try:
        upright = _decode(image, name)
    except ImageError:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise ImageError(f"{name} is broken or not whole: its pixels cannot be decoded ({error}).") from error
    return np.array(upright)  # (H, W, 3)


def _read_file(path: Path, name: str) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise ImageError(f"{name} is not a file.")
        if status.st_size > MAX_BYTES:
            raise _too_many_bytes(name, status.st_size)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {name}.") from error
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}.") from error


def _too_many_bytes(name: str, size: int) -> ImageError:
    limit = f"{MAX_BYTES // 2**20} MiB"
    return ImageError(f"{name} is {size / 2**20:.0f} MiB large, the limit is {limit}: save it smaller, or as JPEG.")


def _open(content: bytes, name: str) -> Image.Image:
    """Read the header alone, and choose the format by the content, whatever the name ends with."""
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has more pixels than the limit of {MAX_PIXELS:,}: scale it down.") from error
    except Image.UnidentifiedImageError as error:
        kind = "not an image that can be read"
        start = content.lstrip(b"\xef\xbb\xbf \t\r\n")
        for offset, mark, known in KNOWN_OTHERS:
            if start[offset : offset + len(mark)].lower() == mark.lower():
                kind = known
        choices = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise ImageError(f"{name} is {kind}, or is broken: save it as {choices}.") from error
    except Exception as error:  # a header may be broken in any way
        raise ImageError(f"{name} is broken: its header cannot be read ({error}).") from error


def _check_header(image: Image.Image, content: bytes, name: str) -> None:
    width, height = image.size
    what = f"{name} is {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise ImageError(f"{what}, the limit is {MAX_PIXELS:,} pixels in all: scale it down.")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{what}, the limit is {MAX_SIDE:,} on a side: scale it down.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{what}: the longer side may be at most {MAX_ASPECT} times the shorter one, so crop it.")
    if image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(f"{name} is a JPEG with more than {MAX_SCANS} scans: save it again, not progressive.")


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Small first, then RGB: what is scaled down early never takes its full memory in four channels."""
    size = _bounded(image.size)
    image.draft("RGB", size)  # a JPEG that is much larger is decoded at 1/2, 1/4 or 1/8: faster, never smaller
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # after load: a TIFF turned itself, a PNG may say it last
    image = _to_8_bits(image, name)
    size = _bounded(image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    if image.mode == "RGBA":
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        return paper
    return image.convert("RGB")


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """To L, RGB or RGBA. Pillow alone would saturate 16 bits to white, and make black of fractions, in silence."""
    if image.mode.startswith("I;16"):
        return _scale_16_bits(image)
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has 32-bit or signed values, whose black and white are unknown: save it as 8 bits.")
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode == "LAB":
        raise ImageError(f"{name} has LAB colours: save it as RGB.")
    return image.convert("RGB")


def _scale_16_bits(image: Image.Image) -> Image.Image:
    """The upper 8 bits, which is what Pillow itself keeps of 16-bit colours."""
    tags = getattr(image, "tag_v2", {})
    num_bits = tags.get(258, (16,))[0]  # BitsPerSample: 12 or 16
    values = np.asarray(image) >> (num_bits - 8)
    if tags.get(262) == 0:  # PhotometricInterpretation: zero is white
        values = 255 - values
    return Image.fromarray(values.astype(np.uint8))
