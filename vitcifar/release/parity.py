"""Whether ONNX outputs match PyTorch: on test images and edge-case files, before anything is registered."""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.image import read_image
from vitcifar.errors import ReleaseError
from vitcifar.release.export import at_rest

if TYPE_CHECKING:
    from vitcifar.inference.session import OnnxClassifier
    from vitcifar.model.network import Classifier

ORIENTATION = 0x0112  # the EXIF tag


def edge_case_files() -> dict[str, bytes]:
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
    """An image uint8 (H, W, 3) as the bytes of a file that loses nothing."""
    return _save(Image.fromarray(image), "PNG", compress_level=1)


def _gradient(width: int, height: int) -> np.ndarray:
    """Each corner of its own colour, so that turning an image shows: uint8 (H, W, 3)."""
    across, down = np.linspace(0, 255, width)[None, :], np.linspace(0, 255, height)[:, None]
    channels = [across + 0 * down, 0 * across + down, (across + down) / 2]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _transparent(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(_gradient(*image.size)[:, :, 0]))
    return image


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


MAX_LOGIT_DIFFERENCE = 1e-3
BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the serving path is from the network, over `num_images` images."""

    max_logit_difference: float
    num_changed: int  # images with another top-1 answer
    num_images: int
    worst_id: str
    num_edge_cases: int = 0  # of them, files of unusual kinds

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check_parity(network: "Classifier", onnx_path: Path, dataset: ImageDataset) -> Parity:
    """Answer every image, and a set of odd files, on both paths; raises ReleaseError when the answers differ.

    The serving path starts from the bytes of a file; the network gets a test image's pixels as training gave them.
    """
    from vitcifar.inference.session import OnnxClassifier

    if not len(dataset):
        raise ReleaseError("There is no image to compare the ONNX file with the network: give at least one.")
    classifier, edge_cases = OnnxClassifier(onnx_path), edge_case_files()
    expected, actual = [], []
    for images in in_batches(dataset, "Parity"):
        expected.append(network_logits(network, images))
        actual.append(served_logits(classifier, images))
    images = [read_image(data, name) for name, data in edge_cases.items()]
    expected.append(network_logits(network, images))
    actual.append(classifier.logits(images))
    parity = measure_parity(np.concatenate(expected), np.concatenate(actual), (*dataset.ids, *edge_cases))
    return require_match(dataclasses.replace(parity, num_edge_cases=len(edge_cases)))


def in_batches(dataset: ImageDataset, title: str) -> Iterator[list[np.ndarray]]:
    """The images some at a time, with a bar that is called so."""
    for start in tqdm(range(0, len(dataset), BATCH_SIZE), desc=title, unit="batch", disable=None):
        yield [dataset.images[i] for i in range(start, min(start + BATCH_SIZE, len(dataset)))]


def served_logits(classifier: "OnnxClassifier", images: Sequence[np.ndarray]) -> np.ndarray:
    """Logits (N, K) by the serving path, from the bytes of files."""
    return classifier.logits([read_image(to_png(image)) for image in images])


def network_logits(network: "Classifier", images: Sequence[np.ndarray]) -> np.ndarray:
    """The network's own logits (N, K) in float32 on the CPU, images of one size at a time."""
    import torch

    rows: list[np.ndarray | None] = [None] * len(images)
    sizes: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(index)
    with at_rest(network), torch.no_grad():
        for members in sizes.values():
            batch = torch.from_numpy(np.stack([images[i] for i in members]))  # (N, H, W, 3)
            for index, row in zip(members, network(batch).numpy(), strict=True):
                rows[index] = row
    return np.stack([row for row in rows if row is not None])


def measure_parity(expected: np.ndarray, actual: np.ndarray, ids: Sequence[str]) -> Parity:
    """Measure two sets of logits (N, K) against each other; a number that is not finite counts as infinitely far."""
    if expected.shape != actual.shape:
        raise ReleaseError(f"The ONNX file answers {actual.shape}, expected {expected.shape}: export it again.")
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
    """Let equal answers pass; raises ReleaseError for anything else."""
    if parity.max_logit_difference <= MAX_LOGIT_DIFFERENCE and parity.num_changed == 0 and parity.num_images > 0:
        return parity
    raise ReleaseError(
        f"The ONNX file does not answer as the network does: logits differ by up to {parity.max_logit_difference:.3g} "
        f"(limit {MAX_LOGIT_DIFFERENCE:g}), {parity.num_changed} of {parity.num_images} answers changed, worst on "
        f"{parity.worst_id!r}. Nothing was registered."
    )
