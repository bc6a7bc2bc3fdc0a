"""Random images, and the logits of an ONNX file by onnxruntime alone."""

from pathlib import Path

import numpy as np
import onnxruntime


def random_images(number: int, height: int, width: int) -> np.ndarray:
    """uint8 (number, height, width, 3), the same every time."""
    return np.random.default_rng(height).integers(0, 256, (number, height, width, 3), dtype=np.uint8)


def run_onnx(path: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities (N, K) of images (N, H, W, 3)."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {"image": images})
    return logits, probabilities
