"""Does the ONNX file answer as the network does? Asked with real pictures, before anything is registered."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from vitcifar.data.picture import read_picture
from vitcifar.data.pictures import Pictures
from vitcifar.errors import ReleaseError
from vitcifar.release.export import at_rest
from vitcifar.release.odd import odd_files, to_png

if TYPE_CHECKING:
    from vitcifar.inference.session import OnnxClassifier
    from vitcifar.training.network import Classifier

MAX_LOGIT_DIFFERENCE = 1e-3
BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the serving path is from the network, over `num_pictures` pictures."""

    max_logit_difference: float
    num_changed: int  # pictures with another top-1 answer
    num_pictures: int
    worst_id: str
    num_odd_files: int = 0  # of them, files of unusual kinds

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check_parity(network: "Classifier", onnx_path: Path, pictures: Pictures) -> Parity:
    """Answer every picture, and a set of odd files, on both paths; raises ReleaseError when the answers differ.

    The serving path starts from the bytes of a file; the network gets a test picture's pixels as training gave them.
    """
    from vitcifar.inference.session import OnnxClassifier

    if not len(pictures):
        raise ReleaseError("There is no picture to compare the ONNX file with the network: give at least one.")
    classifier, odd = OnnxClassifier(onnx_path), odd_files()
    expected, actual = [], []
    for images in in_batches(pictures, "Parity"):
        expected.append(network_logits(network, images))
        actual.append(served_logits(classifier, images))
    images = [read_picture(data, name) for name, data in odd.items()]
    expected.append(network_logits(network, images))
    actual.append(classifier.logits(images))
    parity = compare(np.concatenate(expected), np.concatenate(actual), (*pictures.ids, *odd))
    return hold(dataclasses.replace(parity, num_odd_files=len(odd)))


def in_batches(pictures: Pictures, title: str) -> Iterator[list[np.ndarray]]:
    """The pictures some at a time, with a bar that is called so."""
    for start in tqdm(range(0, len(pictures), BATCH_SIZE), desc=title, unit="batch", disable=None):
        yield [pictures.images[i] for i in range(start, min(start + BATCH_SIZE, len(pictures)))]


def served_logits(classifier: "OnnxClassifier", images: Sequence[np.ndarray]) -> np.ndarray:
    """Logits (N, K) by the serving path, from the bytes of files."""
    return classifier.logits([read_picture(to_png(image)) for image in images])


def network_logits(network: "Classifier", images: Sequence[np.ndarray]) -> np.ndarray:
    """The network's own logits (N, K) in float32 on the CPU, pictures of one size at a time."""
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


def compare(expected: np.ndarray, actual: np.ndarray, ids: Sequence[str]) -> Parity:
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
        num_pictures=len(expected),
        worst_id=str(ids[worst]),
    )


def hold(parity: Parity) -> Parity:
    """Let equal answers pass; raises ReleaseError for anything else."""
    if parity.max_logit_difference <= MAX_LOGIT_DIFFERENCE and parity.num_changed == 0 and parity.num_pictures > 0:
        return parity
    raise ReleaseError(
        f"The ONNX file does not answer as the network does: logits differ by up to {parity.max_logit_difference:.3g} "
        f"(limit {MAX_LOGIT_DIFFERENCE:g}), {parity.num_changed} of {parity.num_pictures} answers changed, worst on "
        f"{parity.worst_id!r}. Nothing was registered."
    )
