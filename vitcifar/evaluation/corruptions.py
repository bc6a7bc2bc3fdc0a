"""15 corruptions at 5 severities in the style of Hendrycks & Dietterich (2019), and the accuracy that is left.

Differences: frost is a fractal instead of photographs, and lengths, given for 32 pixels, scale with the shorter side
(`unit`). Accuracies are not comparable with published mean corruption errors (mCE).
Pixels are float (H, W, 3) in [0, 1].
"""

import dataclasses
import io
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates
from scipy.signal import fftconvolve

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.calibration import wilson_interval
from vitcifar.evaluation.metrics import Predictor
from vitcifar.evaluation.slices import LUMA

Random = np.random.Generator


def corrupt(image: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupt an image uint8 (H, W, 3); `name` is a key of CORRUPTIONS, `severity` 1 to 5.

    The result has the same shape and type, and is the same for the same seed.
    """
    function, levels = CORRUPTIONS[name]
    assert image.dtype == np.uint8 and image.ndim == 3 and 1 <= severity <= len(levels), (image.dtype, severity)
    random = np.random.default_rng([seed, zlib.crc32(name.encode()), severity])
    unit = min(image.shape[:2]) / 32
    pixels = function(image / 255, levels[severity - 1], random, unit)
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def gaussian_noise(pixels: np.ndarray, scale: float, random: Random, unit: float) -> np.ndarray:
    return pixels + random.normal(scale=scale, size=pixels.shape)


def shot_noise(pixels: np.ndarray, photons: float, random: Random, unit: float) -> np.ndarray:
    return np.asarray(random.poisson(pixels * photons) / photons)


def impulse_noise(pixels: np.ndarray, share: float, random: Random, unit: float) -> np.ndarray:
    draw = random.random(pixels.shape)
    return np.where(draw < share / 2, 0.0, np.where(draw < share, 1.0, pixels))


def defocus_blur(pixels: np.ndarray, level: tuple[float, float], random: Random, unit: float) -> np.ndarray:
    radius, smoothing = level[0] * unit, level[1] * unit
    reach = int(np.ceil(radius + 3 * smoothing)) + 1
    x, y = np.meshgrid(*[np.arange(-reach, reach + 1)] * 2)
    disk = gaussian_filter((x**2 + y**2 <= radius**2).astype(float), smoothing, mode="constant")
    return _convolve(pixels, disk)


def glass_blur(pixels: np.ndarray, level: tuple[float, int, int], random: Random, unit: float) -> np.ndarray:
    sigma, reach, rounds = level[0] * unit, max(1, round(level[1] * unit)), level[2]
    pixels = gaussian_filter(pixels, (sigma, sigma, 0))
    height, width = pixels.shape[:2]
    rows, columns = np.indices((height, width))
    for _ in range(rounds):
        shift = random.integers(-reach, reach, size=(2, height, width), endpoint=True)
        pixels = pixels[np.clip(rows + shift[0], 0, height - 1), np.clip(columns + shift[1], 0, width - 1)]
    return np.asarray(gaussian_filter(pixels, (sigma, sigma, 0)))


def motion_blur(pixels: np.ndarray, level: tuple[float, float], random: Random, unit: float) -> np.ndarray:
    return _smear(pixels, level[0] * unit, level[1] * unit, random.uniform(-45, 45))


def zoom_blur(pixels: np.ndarray, farthest: float, random: Random, unit: float) -> np.ndarray:
    zooms = np.arange(1, farthest, 0.01)
    return (pixels + sum(_zoom(pixels, zoom) for zoom in zooms)) / (len(zooms) + 1)


def snow(pixels: np.ndarray, level: tuple[float, ...], random: Random, unit: float) -> np.ndarray:
    mean, deviation, zoom, threshold, radius, sigma, opacity = level
    height, width = pixels.shape[:2]
    flakes = random.normal(mean, deviation, size=(int(np.ceil(height / unit)), int(np.ceil(width / unit))))
    flakes = _zoom(_resize(flakes, height, width)[..., None], zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = _smear(flakes, radius * unit, sigma * unit, random.uniform(-135, -45))
    whitened = np.maximum(pixels, (pixels @ LUMA)[..., None] * 1.5 + 0.5)
    return np.asarray(opacity * pixels + (1 - opacity) * whitened + flakes + np.rot90(flakes, k=2))


def frost(pixels: np.ndarray, level: tuple[float, float], random: Random, unit: float) -> np.ndarray:
    opacity, amount = level
    height, width = pixels.shape[:2]
    # Ice needles are thin ridges where a cloud crosses its middle; a second cloud sets the thickness of the ice.
    ridges = 1 - np.abs(2 * _cloud(height, width, 1.6, random) - 1)
    ice = 0.45 * ridges**4 + 0.75 * _cloud(height, width, 1.9, random)
    tint = np.array([0.86, 0.95, 1.0])
    return np.asarray(opacity * pixels + amount * np.clip(ice, 0, 1)[..., None] * tint)


def fog(pixels: np.ndarray, level: tuple[float, float], random: Random, unit: float) -> np.ndarray:
    amount, smoothness = level
    brightest = max(float(pixels.max()), 1e-6)
    cloud = _cloud(pixels.shape[0], pixels.shape[1], smoothness, random)[..., None]
    return (pixels + amount * cloud) * brightest / (brightest + amount)


def brightness(pixels: np.ndarray, amount: float, random: Random, unit: float) -> np.ndarray:
    value = pixels.max(axis=2, keepdims=True)  # V of HSV; hue and saturation do not change
    raised = np.clip(value + amount, 0, 1)
    return np.asarray(np.where(value > 0, pixels * raised / np.maximum(value, 1e-12), raised))


def contrast(pixels: np.ndarray, factor: float, random: Random, unit: float) -> np.ndarray:
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    return np.asarray((pixels - mean) * factor + mean)


def elastic_transform(pixels: np.ndarray, level: tuple[float, ...], random: Random, unit: float) -> np.ndarray:
    push, sigma, shake = 32 * unit * level[0], 32 * level[1], 32 * unit * level[2]
    height, width = pixels.shape[:2]
    third = max(min(height, width) // 3, 1)
    corners = np.array([[1, 1], [1, -1], [-1, -1]]) * third  # around the centre
    moved = corners + random.uniform(-shake, shake, size=(3, 2))
    # The affine map from the moved corners to the original ones.
    inverse = np.linalg.lstsq(np.c_[moved, np.ones(3)], corners, rcond=None)[0]
    grid = np.indices((height, width)).reshape(2, -1).T - [height // 2, width // 2]
    source = (np.c_[grid, np.ones(len(grid))] @ inverse).T.reshape(2, height, width)
    for axis in range(2):
        wobble = random.uniform(-1, 1, size=(int(np.ceil(height / unit)), int(np.ceil(width / unit))))
        wobble = gaussian_filter(wobble, sigma, mode="reflect", truncate=3)
        source[axis] += push * _resize(wobble, height, width) + (height // 2, width // 2)[axis]
    return np.stack([map_coordinates(pixels[..., c], source, order=1, mode="mirror") for c in range(3)], axis=2)


def pixelate(pixels: np.ndarray, share: float, random: Random, unit: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    # At 32 pixels this is the authors' resize; in larger images a block covers the same fraction of the image.
    small = (max(1, int(height / unit * share)), max(1, int(width / unit * share)))
    image = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    image = image.resize(small[::-1], Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
    return np.asarray(image) / 255


def jpeg_compression(pixels: np.ndarray, quality: int, random: Random, unit: float) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB")) / 255


def _convolve(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve each channel with a square kernel of odd side; edges are replicated."""
    reach = len(kernel) // 2
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    return np.asarray(fftconvolve(padded, (kernel / kernel.sum())[..., None], mode="valid", axes=(0, 1)))


def _smear(pixels: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """Motion blur in one direction (degrees), with half a Gaussian as weights."""
    steps = np.arange(0, min(2 * radius, 4 * sigma) + 0.5, 0.5)
    reach = int(np.ceil(steps[-1])) + 1
    kernel = np.zeros((2 * reach + 1,) * 2)
    points = reach + steps * np.array([[np.sin(np.radians(angle))], [np.cos(np.radians(angle))]])  # (2, steps)
    corners = np.floor(points).astype(int)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    for offset in np.ndindex(2, 2):  # each point is shared by the four pixels around it
        pixel = corners + np.array(offset)[:, None]
        np.add.at(kernel, tuple(pixel), weights * (1 - np.abs(points - pixel)).prod(axis=0))
    return _convolve(pixels, kernel)


def _zoom(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Zoom into the centre of an image (H, W, C); the size does not change."""
    centre = (np.array(pixels.shape[:2]) - 1) / 2
    offset = centre - centre / factor
    return np.asarray(affine_transform(pixels, [1 / factor, 1 / factor, 1], [*offset, 0], order=1, mode="nearest"))


def _cloud(height: int, width: int, decay: float, random: Random) -> np.ndarray:
    """Fractal noise (H, W) in [0, 1]: each octave has twice the frequency and 1 / `decay` of the amplitude."""
    total = np.zeros((height, width))
    for octave in range(1, 6):
        cells = random.uniform(-1, 1, size=(2**octave + 1, 2**octave + 1))
        total += _resize(cells, height, width) / decay**octave
    total -= total.min()
    return total / max(float(total.max()), 1e-12)


def _resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float64)


# Name -> function and five levels, those of make_cifar_c.py (github.com/hendrycks/robustness).
Corruption = tuple[Callable[[np.ndarray, Any, Random, float], np.ndarray], tuple[Any, ...]]
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Robustness:
    """Accuracy on clean and on corrupted images."""

    names: tuple[str, ...]
    severities: tuple[int, ...]
    num_images: int
    clean_accuracy: float
    accuracy: np.ndarray  # (corruptions, severities)

    @property
    def mean_accuracy(self) -> float:
        return float(self.accuracy.mean())

    def interval(self, accuracy: float) -> tuple[float, float]:
        """Wilson's 95% interval of an accuracy on these images; of a mean over corruptions it is rather too wide."""
        return wilson_interval(round(accuracy * self.num_images), self.num_images)

    def caution(self) -> str:
        """A sentence where the clean accuracy lies in the interval of the corrupted one, else nothing."""
        low, high = self.interval(self.mean_accuracy)
        if not low <= self.clean_accuracy <= high:
            return ""
        return f"{self.num_images:,} images are too few to tell the two apart: type a higher --corruption-images."

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "accuracy": self.accuracy.tolist()}


def evaluate_robustness(
    predictor: Predictor,
    dataset: ImageDataset,
    *,
    names: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Robustness:
    """Evaluate the predictor on every image once per corruption and severity, and once clean.

    Image i is corrupted with seed i. `progress` wraps the corruptions, for a progress bar.
    """

    def accuracy(images: Sequence[np.ndarray]) -> float:
        return float((np.asarray(predictor(images)).argmax(axis=1) == dataset.labels).mean())

    def corrupted(name: str, severity: int) -> list[np.ndarray]:
        return [corrupt(image, name, severity, index) for index, image in enumerate(dataset.images)]

    grid = [[accuracy(corrupted(name, severity)) for severity in severities] for name in progress(names)]
    return Robustness(
        names=tuple(names),
        severities=tuple(severities),
        num_images=len(dataset),
        clean_accuracy=accuracy(list(dataset.images)),
        accuracy=np.array(grid),
    )
