"""Labelled pictures in memory, uint8, and what they are called."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """N pictures: one array (N, H, W, 3) when all have one size, else a list of (H, W, 3); always uint8.

    `labels` are int64 (N,), each the place of a name in `class_names`; `ids` say where each picture came from.
    """

    images: np.ndarray | list[np.ndarray]
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.labels) == len(self.ids), "as many images as labels and ids"
        assert self.labels.dtype == np.int64, f"labels are {self.labels.dtype}"

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Pictures":
        """The pictures at these places, in this order."""
        places = np.asarray(indices, dtype=np.int64)
        if isinstance(self.images, np.ndarray):
            images: np.ndarray | list[np.ndarray] = self.images[places]
        else:
            images = stack([self.images[place] for place in places])
        ids = tuple(self.ids[place] for place in places)
        return Pictures(images=images, labels=self.labels[places], class_names=self.class_names, ids=ids)

    def counts(self) -> dict[str, int]:
        """How many pictures each class has, in the order of the classes."""
        counted = np.bincount(self.labels, minlength=len(self.class_names))
        return dict(zip(self.class_names, counted.tolist(), strict=True))


def stack(images: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """One array when all pictures have one size, else the list as it is."""
    if images and all(image.shape == images[0].shape for image in images):
        return np.stack(images)  # (N, H, W, 3)
    return images
