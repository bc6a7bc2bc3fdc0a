"""The reference embeddings of a release: those of some test images, by the file that serves, to notice a drift by.

Releases of earlier versions of vitcifar have none.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitcifar.errors import ReleaseError
from vitcifar.progress import bar
from vitcifar.release.manifest import Manifest

REFERENCE_FILE = "reference_embeddings.npy"
MAX_REFERENCE = 500  # images; 0.8 MB for a ViT-B
BATCH_SIZE = 16


def embed(onnx_file: Path, images: np.ndarray | Sequence[np.ndarray], *, openvino: str = "") -> np.ndarray:
    """The embeddings (N, D) of a file of a release, with a progress bar; D is 0 if it has none. `openvino` is the
    precision in which OpenVINO runs it."""
    from vitcifar.inference.session import OnnxClassifier  # onnxruntime writes into the temporary folder when imported

    classifier = OnnxClassifier(onnx_file, openvino=openvino)
    starts = bar(range(0, len(images), BATCH_SIZE), "Reference", "batches")
    return np.concatenate([classifier.logits_and_embeddings(images[start : start + BATCH_SIZE])[1] for start in starts])


def write_reference(folder: Path, embeddings: np.ndarray) -> None:
    """Save at most `MAX_REFERENCE` of the embeddings (N, D) as float16; those without a width are not saved."""
    if embeddings.shape[1]:
        chosen = choose_reference(len(embeddings))
        np.save(folder / REFERENCE_FILE, embeddings[chosen].astype(np.float16), allow_pickle=False)


def choose_reference(num_images: int) -> np.ndarray:
    """The indices (M,) of the images that a release keeps embeddings of: chosen at random, always the same."""
    return np.sort(np.random.default_rng(0).permutation(num_images)[:MAX_REFERENCE])


def read_reference(release: Manifest) -> np.ndarray | None:
    """The reference embeddings float16 (M, D) of a release that was verified; None if it has none.

    Raises ReleaseError for a file that is no such array.
    """
    if REFERENCE_FILE not in release.files:
        return None
    path = release.path(REFERENCE_FILE)
    try:
        reference = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ReleaseError(f"{path} cannot be read ({error}): pull the version again.") from None
    if reference.ndim != 2 or reference.dtype != np.float16 or not np.isfinite(reference).all():
        raise ReleaseError(f"{path} holds no embeddings: choose another version.")
    return np.asarray(reference)
