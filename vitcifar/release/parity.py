"""Parity: ONNX outputs equal PyTorch outputs within a tolerance, on test images and on edge-case files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.edge_cases import edge_case_files, to_png
from vitcifar.data.image import read_image
from vitcifar.errors import ReleaseError
from vitcifar.progress import bar

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

MAX_LOGIT_DIFFERENCE = 1e-3
MAX_TIED = 0.01  # share of images that may differ by more, of a network that merges tokens
BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """Differences between ONNX and PyTorch over `num_images` images; `max_logit_difference` is without the tied ones.

    A network that merges tokens is not continuous: where two pairs are equally similar up to rounding, one or the
    other is merged. Such an image is `tied`: its logits differ by more than the limit.
    """

    max_logit_difference: float
    num_changed: int  # images with another top-1 prediction
    num_images: int
    worst_id: str
    num_edge_cases: int = 0  # how many of the images are edge-case files
    num_tied: int = 0
    max_tied_difference: float = 0.0


def check_parity(
    network: "Classifier", onnx_path: Path, dataset: ImageDataset, *, embeddings: list[np.ndarray] | None = None
) -> Parity:
    """Compare the logits of both models on every image and on the edge-case files; raises ReleaseError if they differ.

    The ONNX model starts from the bytes of an image file, as in serving; the network from the pixels used in training.
    To `embeddings` are appended those that the ONNX model computes on the way, each (N, D) of a batch.
    """
    from vitcifar.inference.session import OnnxClassifier  # onnxruntime writes into the temporary folder when imported
    from vitcifar.model.network import evaluation_mode
    from vitcifar.model.predict import predict_logits

    if not len(dataset):
        raise ReleaseError("There is no image to compare the ONNX file with the network: give at least one.")
    classifier, edge_cases = OnnxClassifier(onnx_path), edge_case_files()
    expected, actual = [], []
    with evaluation_mode(network, "cpu"):
        for start in bar(range(0, len(dataset), BATCH_SIZE), "Parity", "batches"):
            images = dataset.images[start : start + BATCH_SIZE]
            expected.append(predict_logits(network, images))
            logits, embedded = classifier.logits_and_embeddings([read_image(to_png(image)) for image in images])
            actual.append(logits)
            if embeddings is not None:
                embeddings.append(embedded)
        images = [read_image(data, name) for name, data in edge_cases.items()]
        expected.append(predict_logits(network, images))
        actual.append(classifier.logits(images))
    ids, max_tied = (*dataset.ids, *edge_cases), MAX_TIED if network.token_merging else 0.0
    parity = measure_parity(np.concatenate(expected), np.concatenate(actual), ids, max_tied=max_tied)
    return require_match(dataclasses.replace(parity, num_edge_cases=len(edge_cases)))


def measure_parity(expected: np.ndarray, actual: np.ndarray, ids: Sequence[str], *, max_tied: float = 0.0) -> Parity:
    """Compare two arrays of logits (N, K); a row with NaN or infinite values counts as infinitely different.

    Up to a share of `max_tied` of the images may differ by more than the limit: they are tied, and counted.
    """
    if expected.shape != actual.shape:
        raise ReleaseError(f"The ONNX logits have shape {actual.shape}, expected {expected.shape}: export it again.")
    finite = np.isfinite(expected).all(axis=1) & np.isfinite(actual).all(axis=1)
    difference = np.full(len(expected), np.inf)
    difference[finite] = np.abs(expected[finite].astype(np.float64) - actual[finite]).max(axis=1)
    changed = (expected.argmax(axis=1) != actual.argmax(axis=1)) | ~finite
    worst = int(np.lexsort((difference, changed))[-1])
    tied = (difference > MAX_LOGIT_DIFFERENCE) & ~changed
    if tied.sum() > max_tied * len(expected):
        tied[:] = False
    return Parity(
        max_logit_difference=float(difference[~tied].max(initial=0.0)),
        num_changed=int(changed.sum()),
        num_images=len(expected),
        worst_id=str(ids[worst]),
        num_tied=int(tied.sum()),
        max_tied_difference=float(difference[tied].max(initial=0.0)),
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
