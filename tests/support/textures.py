"""Images with the statistics of photographs."""

import numpy as np
from scipy.ndimage import gaussian_filter


def textured_image(height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth shapes of full contrast with some texture, like a photograph."""
    random = np.random.default_rng(seed)
    smooth = gaussian_filter(random.normal(size=(height, width, 3)), (max(height / 8, 0.5), max(width / 8, 0.5), 0.3))
    smooth = (smooth - smooth.min()) / max(float(np.ptp(smooth)), 1e-9)
    return np.round(255 * np.clip(smooth + random.normal(size=smooth.shape) * 0.02, 0, 1)).astype(np.uint8)
