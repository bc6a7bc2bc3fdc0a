"""Pictures of something else, that a classifier should not be sure of."""

import hashlib
from pathlib import Path

import numpy as np

from vitcifar.config import TrainConfig
from vitcifar.data.picture import read_picture
from vitcifar.data.sources import ENDINGS, open_source
from vitcifar.errors import ConfigError, DataError


def outlier_source(config: TrainConfig) -> str:
    """Where the pictures of something else come from; raises ConfigError when they are the same ones."""
    if config.outliers == "auto":
        return "digits" if config.examine == "full" and config.data != "digits" else "none"
    if config.outliers == config.data:
        raise ConfigError(f"outliers is {config.outliers!r}, as data is: they are to be pictures of something else.")
    return config.outliers


def outlier_name(config: TrainConfig) -> str:
    """What the pictures of something else are called in a report: of a folder, its last two names."""
    source = outlier_source(config)
    return (
        source if source in ("none", "digits", "cifar10") else "/".join(Path(source).expanduser().absolute().parts[-2:])
    )


def read_outliers(config: TrainConfig, limit: int) -> list[np.ndarray]:
    """At most `limit` pictures of something else, chosen by hash; none when none are asked for. Raises DataError."""
    name = outlier_source(config)
    if name == "none" or config.examine == "none":
        return []
    if name in ("digits", "cifar10"):
        source = open_source(name, Path(config.data_dir if config.data == "cifar10" else "data"))
        return [*source.read("test", choose(source.ids("test"), limit)).images]
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: type --outliers none, digits, cifar10 or a folder of pictures.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not files:
        raise DataError(f"{folder} holds no pictures: expected files that end with {', '.join(ENDINGS)}.")
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    return [read_picture(files[place]) for place in choose(names, limit)]


def choose(ids: tuple[str, ...], limit: int) -> np.ndarray:
    """At most `limit` places, the same on every machine."""
    ranks = [hashlib.sha256(id.encode()).digest() for id in ids]
    return np.sort(np.array(sorted(range(len(ids)), key=ranks.__getitem__)[:limit], dtype=np.int64))
