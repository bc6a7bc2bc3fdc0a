"""Parity: ONNX outputs equal PyTorch outputs within a tolerance, on test images and on edge-case files."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.image import read_image
from vitcifar.errors import ReleaseError
from vitcifar.inference.session import OnnxClassifier

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

MAX_LOGIT_DIFFERENCE = 1e-3
BATCH_SIZE = 16
ORIENTATION = 0x0112  # the EXIF tag


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """Differences between ONNX and PyTorch over `num_images` images."""

    max_logit_difference: float
    num_changed: int  # images with another top-1 prediction
    num_images: int
    worst_id: str
    num_edge_cases: int = 0  # how many of the images are edge-case files


def check_parity(network: "Classifier", onnx_path: Path, dataset: ImageDataset) -> Parity:
    """Compare the logits of both models on every image and on the edge-case files; raises ReleaseError if they differ.

    The ONNX model starts from the bytes of an image file, as in serving; the network from the pixels used in training.
    """
    from vitcifar.model.network import evaluation_mode
    from vitcifar.model.predict import predict_logits

    if not len(dataset):
        raise ReleaseError("There is no image to compare the ONNX file with the network: give at least one.")
    classifier, edge_cases = OnnxClassifier(onnx_path), edge_case_files()
    expected, actual = [], []
    with evaluation_mode(network, "cpu"):
        for start in tqdm(range(0, len(dataset), BATCH_SIZE), desc="Parity", unit="batch", disable=None):
            images = [dataset.images[i] for i in range(start, min(start + BATCH_SIZE, len(dataset)))]
            expected.append(predict_logits(network, images))
            actual.append(classifier.logits([read_image(_save(Image.fromarray(image), "PNG")) for image in images]))
        images = [read_image(data, name) for name, data in edge_cases.items()]
        expected.append(predict_logits(network, images))
        actual.append(classifier.logits(images))
    parity = measure_parity(np.concatenate(expected), np.concatenate(actual), (*dataset.ids, *edge_cases))
    return require_match(dataclasses.replace(parity, num_edge_cases=len(edge_cases)))


def measure_parity(expected: np.ndarray, actual: np.ndarray, ids: Sequence[str]) -> Parity:
    """Compare two arrays of logits (N, K); a row with NaN or infinite values counts as infinitely different."""
    if expected.shape != actual.shape:
        raise ReleaseError(f"The ONNX logits have shape {actual.shape}, expected {expected.shape}: export it again.")
    finite = np.isfinite(expected).all(axis=1) & np.isfinite(actual).all(axis=1)
    difference = np.full(len(expected), np.inf)
    difference[finite] = np.abs(expected[finite].astype(np.float64) - actual[finite]).max(axis=1)
    changed = (expected.argmax(axis=1) != actual.argmax(axis=1)) | ~finite
    worst = int(np.lexsort((difference, changed))[-1])
    return Parity(
        max_logit_difference=float(difference.max()),
        num_changed=int(changed.sum()),
        num_images=len(expected),
        worst_id=str(ids[worst]),
    )


def require_match(parity: Parity) -> Parity:
    """Return the parity if it is within the tolerance with no changed prediction, else raise ReleaseError."""
    if parity.max_logit_difference <= MAX_LOGIT_DIFFERENCE and parity.num_changed == 0 and parity.num_images > 0:
        return parity
    raise ReleaseError(
        f"ONNX and PyTorch outputs differ: logits by up to {parity.max_logit_difference:.3g} "
        f"(limit {MAX_LOGIT_DIFFERENCE:g}), {parity.num_changed} of {parity.num_images} predictions changed, worst on "
        f"{parity.worst_id!r}. Nothing was registered."
    )


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
        exif[ORIENTATION] = orientation
        files[f"edge/exif-{orientation}.jpg"] = _save(colour, "JPEG", quality=90, exif=exif)
    return files


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
