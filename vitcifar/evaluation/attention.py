"""Which parts of a picture the class token's answer was made from.

Shapes: L layers, h heads, T tokens (the class token first, then the patches row by row), attention (L, h, T, T).
"""

import numpy as np
from PIL import Image


def rollout(attention: np.ndarray, grid: tuple[int, int] | None = None) -> np.ndarray:
    """Attention rollout of one picture: (rows, columns) of patches, sums to 1 (Abnar & Zuidema 2020).

    Heads are averaged, the residual connection is half of every layer, and layers are multiplied through.
    `grid` is needed when the patches are not a square.
    """
    num_tokens = attention.shape[-1]
    assert attention.ndim == 4 and attention.shape[-2] == num_tokens, attention.shape
    side = round((num_tokens - 1) ** 0.5)
    grid = grid or (side, side)
    assert grid[0] * grid[1] == num_tokens - 1, (grid, num_tokens)
    flow = np.eye(num_tokens)
    for layer in np.asarray(attention, np.float64).mean(axis=1):  # (T, T)
        layer = (layer + np.eye(num_tokens)) / 2
        flow = (layer / layer.sum(axis=1, keepdims=True)) @ flow
    patches = flow[0, 1:]
    return (patches / patches.sum()).reshape(grid)


def overlay_weights(patches: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map stretched to the picture, smooth, between 0 and 1: (height, width)."""
    spread = (patches - patches.min()) / max(float(patches.max() - patches.min()), 1e-12)
    grown = Image.fromarray(spread.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(grown, np.float64), 0, 1)
