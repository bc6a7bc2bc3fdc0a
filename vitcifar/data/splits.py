"""Balanced splits of a source: the same images for a seed, on every machine and in any order of the files."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset, Source
from vitcifar.data.files import ImageFiles, load_files
from vitcifar.data.sources import open_source
from vitcifar.errors import DataError, ImageError, listed

Classes = dict[str, np.ndarray]  # class name -> indices of its images in a part, in hash order


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Three disjoint datasets: train, validation and test."""

    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def datasets(self) -> dict[str, ImageDataset]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Split -> fingerprint of its dataset."""
        return {split: dataset.fingerprint for split, dataset in self.datasets.items()}

    @functools.cached_property
    def fingerprint(self) -> str:
        """One sha256 over the fingerprints of all three splits."""
        lines = "".join(f"{split} {digest}\n" for split, digest in self.fingerprints.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> class -> number of images."""
        return {split: dataset.counts() for split, dataset in self.datasets.items()}


def read_splits(config: TrainConfig, *, test_only: bool = False) -> Splits:
    """The splits that a config selects; raises DataError. `test_only`: of a folder the test part alone."""
    return make_splits(
        open_source(config.data, Path(config.data_dir), test_only=test_only),
        train_per_class=config.train_per_class,
        validation_per_class=config.validation_per_class,
        test_per_class=config.test_per_class,
        seed=config.data_seed,
        cache_memory=config.cache_memory,
    )


def make_splits(source: Source, *, cache_memory: float = math.inf, **selected: int) -> Splits:
    """Choose the indices (see `choose_indices`) and read the images, in memory up to `cache_memory` GB of files."""
    empty, parts = source.read("test", []), split_parts(source)
    datasets = {split: source.read(parts[split], rows) for split, rows in choose_indices(source, **selected).items()}
    try:
        loaded = load_files({split: dataset.images for split, dataset in datasets.items()}, cache_memory)
        datasets |= {split: dataclasses.replace(datasets[split], images=images) for split, images in loaded.items()}
        splits = Splits(**dict.fromkeys(("train", "validation", "test"), empty) | datasets)
        if any(isinstance(dataset.images, ImageFiles) for dataset in splits.datasets.values()):
            _ = splits.fingerprints  # decodes each image once: broken ones are named before anything starts
    except ImageError:
        check_files(source)
        raise
    return splits


def check_files(source: Source) -> None:
    """Raise one ImageError for every broken file of a source, also those not chosen: without the others they may be."""
    datasets = [source.read(part, range(len(source.ids(part)))) for part in source.parts]
    paths = [path for dataset in datasets if isinstance(dataset.images, ImageFiles) for path in dataset.images.paths]
    for _ in ImageFiles(paths):
        pass


def split_parts(source: Source) -> dict[str, str]:
    """Split -> the part of the source that its images come from; a source of a test part alone has no other split."""
    own = {part: part for part in source.parts}
    return {"validation": "train", **own} if "train" in own else own


def choose_indices(
    source: Source, *, train_per_class: int, validation_per_class: int, test_per_class: int, seed: int
) -> dict[str, np.ndarray]:
    """Split -> indices into its part of the source, in the order of the split; reads no image.

    Each class is ordered by hash: training takes from the front, validation from the back of train or of its own part,
    test from the front of test. So a larger training subset contains the smaller one, and validation does not change
    with it. 0 = all that is left (training), all of its own part (validation), all (test). Raises DataError with the
    counts of every class that has too few.
    """
    orders: dict[str, np.ndarray] = {}
    classes: dict[str, Classes] = {}
    for part in source.parts:
        orders[part] = order = hash_order(f"{seed}:{part}:{id}" for id in source.ids(part))
        labels = source.labels(part)[order]
        classes[part] = {name: order[labels == label] for label, name in enumerate(source.class_names)}
    _check_counts(classes, train_per_class, validation_per_class, test_per_class)
    taken = 0 if "validation" in classes else validation_per_class
    chosen: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "train": lambda indices: indices[: train_per_class or len(indices) - taken],
        "validation": lambda indices: indices[-validation_per_class:],
        "test": lambda indices: indices[: test_per_class or None],
    }
    return {  # the hash order of all images, which shuffles the classes
        split: orders[part][np.isin(orders[part], np.concatenate([*map(chosen[split], classes[part].values())]))]
        for split, part in split_parts(source).items()
    }


def hash_order(texts: Iterable[str]) -> np.ndarray:
    """The indices of some texts in the order of their sha256, independent of any random generator's version."""
    hashes = [hashlib.sha256(text.encode()).digest() for text in texts]
    return np.array(sorted(range(len(hashes)), key=hashes.__getitem__), dtype=np.int64)


def _check_counts(classes: dict[str, Classes], train: int, validation: int, test: int) -> None:
    """Check the classes of each part."""
    problems = []
    if "validation" in classes:
        problems += [_lacking("training", "--train-per-class", classes["train"], train)]
        problems += [_lacking("validation", "--validation-per-class", classes["validation"], validation)]
    elif "train" in classes:
        if not validation:
            raise DataError(
                "validation_per_class is 0, all images of a validation folder, and there is none: type a number, such "
                "as --validation-per-class 25."
            )
        needed = (train or 1) + validation
        if short := _short(classes["train"], needed):
            left = min(map(len, classes["train"].values())) - validation
            cure = f"type --train-per-class {left}" if left > 0 else "type a smaller --validation-per-class"
            asked = f"{train or 'at least 1'} for training and {validation} for validation"
            problems.append(f"{asked} per class need {needed}, but {short} ({cure})")
    problems.append(_lacking("the test", "--test-per-class", classes["test"], test))
    if any(problems):
        raise DataError(f"Too few images: {'; '.join(filter(None, problems))}.")


def _lacking(purpose: str, option: str, classes: Classes, number: int) -> str:
    """What a part lacks whose images have one purpose ("" = nothing); 0 = at least one image."""
    short, fewest = _short(classes, number or 1), min(map(len, classes.values()))
    cure = f"type {option} {fewest}" if fewest else "add some"
    return short and f"for {purpose} {number or 'at least 1'} per class are needed, but {short} ({cure})"


def _short(classes: Classes, needed: int) -> str:
    """The classes with fewer images than needed, with their counts ("" = none)."""
    short = [f"{name} has {len(indices)}" for name, indices in classes.items() if len(indices) < needed]
    return listed(short)
