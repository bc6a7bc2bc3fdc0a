"""Image files as a sequence of images: decoded each time they are used, or once into memory."""

import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import overload

import numpy as np
import psutil

from vitcifar.data.image import image_shape, known_endings, read_image
from vitcifar.errors import DataError, ImageError
from vitcifar.progress import bar

SYSTEM = {"@eadir", "__macosx", "lost+found", "#recycle", "$recycle.bin", "system volume information"}
SYSTEM |= {"thumbs.db", "desktop.ini"}
MAX_NAMED = 20  # broken files in a message
AHEAD = 64  # images that are decoded before they are asked for


class ImageFiles(Sequence[np.ndarray]):
    """The images of some files, uint8 (H, W, 3) each, decoded each time they are used; a slice is a list of them.

    Decoding is parallel in slices and iterations, which raise one ImageError that names all broken files.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        return [*ImageFiles(self.paths[index])] if isinstance(index, slice) else read_image(self.paths[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        broken: list[ImageError] = []
        with ThreadPoolExecutor() as pool:  # decoding releases the GIL
            for start in range(0, len(self), AHEAD):
                for image in pool.map(_try_read, self.paths[start : start + AHEAD]):
                    if isinstance(image, ImageError):
                        broken.append(image)
                    elif not broken:
                        yield image
        if broken:
            raise _all_of(broken)

    @functools.cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """The shape of each image that can be opened, from its header."""
        with ThreadPoolExecutor() as pool:
            read = bar(pool.map(image_shape, self.paths), "Reading headers", "images", total=len(self))
            return [shape for shape in read if shape]

    def num_bytes(self) -> int:
        """Memory of all images when they are decoded."""
        return sum(height * width * 3 for height, width, _ in self.shapes)

    def load(self, name: str) -> np.ndarray | list[np.ndarray]:
        """All images in memory, once: an array that is filled as they are decoded when all have one size, else a list.

        `name` is for the progress bar. Raises ImageError; DataError when there is not enough memory.
        """
        try:
            array = np.empty((len(self), *self.shapes[0]), np.uint8) if len({*self.shapes}) == 1 else None
            images = []
            for index, image in enumerate(bar(self, f"Reading {name}", "images")):
                if array is not None and image.shape == array.shape[1:]:
                    array[index] = image
                    image = array[index]
                else:  # EXIF has turned it
                    array = None
                images.append(image)
        except MemoryError as error:
            raise DataError(
                f"There is not enough memory for the images of {name}, {self.num_bytes() / 1e9:.3g} GB: type a smaller "
                "--cache-memory, so that each is decoded whenever it is used."
            ) from error
        return images if array is None else array


def load_files(images: Mapping[str, object], cache_memory: float) -> dict[str, np.ndarray | list[np.ndarray]]:
    """Split -> its images in memory, of those that are files; none of them, with a note, when they need more than
    `cache_memory` GB or half of the free memory. Raises one ImageError for the broken files of all splits."""
    files = {split: value for split, value in images.items() if isinstance(value, ImageFiles)}
    gigabytes = sum(value.num_bytes() for value in files.values()) / 1e9
    half = psutil.virtual_memory().available / 2e9
    limit, name = min((cache_memory, "cache_memory"), (half, "half of the free memory"))
    if gigabytes > limit:
        warnings.warn(
            f"The images need {gigabytes:.3g} GB, more than {name} ({limit:.3g} GB): each is decoded "
            "whenever it is used, which is slower and changes no result.",
            stacklevel=2,
        )
        return {}
    loaded, broken = {}, []
    for split, value in files.items():
        try:
            loaded[split] = value.load(split)
        except ImageError as error:
            broken.append(error)
    if broken:
        raise _all_of(broken)
    return loaded


def is_image(path: Path) -> bool:
    """Whether a file is meant to be an image, by its name, or is one, by its content."""
    return path.name.lower().endswith(known_endings()) or image_shape(path) is not None


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left there by a system."""
    return name.startswith(".") or name.lower() in SYSTEM


def _try_read(path: Path) -> np.ndarray | ImageError:
    try:
        return read_image(path)
    except ImageError as error:
        return error


def _all_of(errors: Sequence[ImageError]) -> ImageError:
    more = f" And {len(errors) - MAX_NAMED} more." if len(errors) > MAX_NAMED else ""
    return ImageError(" ".join(str(error) for error in errors[:MAX_NAMED]) + more)
