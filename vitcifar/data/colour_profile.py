"""Converts the colours of an image from the ICC profile of its file to sRGB, as browsers show them."""

import functools
import io

import numpy as np
from PIL import Image, ImageChops, ImageCms

MAX_PROFILE_BYTES = 4 * 2**20  # a larger one is ignored; those of printing presses have up to 3 MiB
MAX_DIFFERENCE = 4  # levels of 255: a profile that changes no colour by more is sRGB, rounded
CACHED_PROFILES = 8
GREY_BANDS = ("1", "L", "I")
MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by the colours that a profile is for


def find_transform(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """From the colours of an opened image to sRGB.

    None if it has no profile, or an invalid one, one of sRGB, or one for colours that the image does not have.
    """
    profile, bands = image.info.get("icc_profile"), image.getbands()
    if not isinstance(profile, bytes) or not 0 < len(profile) <= MAX_PROFILE_BYTES:
        return None
    modes = ("CMYK",) if image.mode == "CMYK" else ("L", "RGB") if bands[0] in GREY_BANDS else ("RGB",)
    transform = _transform(profile)
    return transform if transform and transform.input_mode in modes else None


def to_srgb(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """L, RGB, RGBA or CMYK -> RGB or RGBA, with the same transparency."""
    colours = image.convert(transform.input_mode)
    if transform.input_mode == "L":  # Little CMS is slow here, or inaccurate: it converts each level once
        levels = transform.apply(Image.fromarray(np.arange(256, dtype=np.uint8)[None]))
        converted = colours.point(np.asarray(levels)[0, :, 0].tolist()).convert("RGB")
    else:
        converted = transform.apply(colours)
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


@functools.lru_cache(CACHED_PROFILES)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """From a profile to RGB in sRGB; None for sRGB itself, and for what is no profile of colours.

    The intent is perceptual; profiles of a matrix and curves (Display P3, Adobe RGB, ProPhoto) have none, and colours
    that sRGB does not have become the nearest value of each channel.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = MODES[source.profile.xcolor_space]
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.ImageCmsTransform(source, target, mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags=flags)
        if mode == "CMYK":
            return transform
        sample = Image.linear_gradient("L") if mode == "L" else _all_colours()
        difference = ImageChops.difference(transform.apply(sample), sample.convert("RGB"))
        return transform if np.max(difference.getextrema()) > MAX_DIFFERENCE else None
    except Exception:  # a library may raise anything on a broken profile
        return None


def _all_colours() -> Image.Image:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(18, -1, 3))
