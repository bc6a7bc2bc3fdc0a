"""A disk without space."""

import contextlib
from pathlib import Path


def fill(folder: Path) -> None:
    """Write `ballast` until the disk of the folder is full."""
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
