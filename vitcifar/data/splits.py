"""Balanced splits of a source: the same images for a seed, on every machine and in any order of the files."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset, Source, fingerprint
from vitcifar.data.sources import open_source
from vitcifar.errors import DataError

MAX_LISTED = 20  # classes in an error message
PARTS = {"train": "train", "validation": "train", "test": "test"}  # split -> part of the source
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
        return {split: fingerprint(dataset) for split, dataset in self.datasets.items()}

    @functools.cached_property
    def fingerprint(self) -> str:
        """One sha256 over the fingerprints of all three splits."""
        lines = "".join(f"{split} {digest}\n" for split, digest in self.fingerprints.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> class -> number of images."""
        return {split: dataset.counts() for split, dataset in self.datasets.items()}


def read_splits(config: TrainConfig) -> Splits:
    """The splits that a config selects; raises DataError."""
    return make_splits(
        open_source(config.data, Path(config.data_dir)),
        train_per_class=config.train_per_class,
        validation_per_class=config.validation_per_class,
        test_per_class=config.test_per_class,
        seed=config.data_seed,
    )


def make_splits(
    source: Source, *, train_per_class: int, validation_per_class: int, test_per_class: int, seed: int
) -> Splits:
    """Choose the indices and read the images. Raises DataError when a class has too few."""
    indices = choose_indices(
        source,
        train_per_class=train_per_class,
        validation_per_class=validation_per_class,
        test_per_class=test_per_class,
        seed=seed,
    )
    return Splits(**{split: source.read(part, indices[split]) for split, part in PARTS.items()})


def choose_indices(
    source: Source, *, train_per_class: int, validation_per_class: int, test_per_class: int, seed: int
) -> dict[str, np.ndarray]:
    """Split -> indices into its part of the source, in the order of the split; reads no image.

    Each class is ordered by hash: training takes from the front, validation from the back, test from the test part. So
    a larger training subset contains the smaller one, and validation does not change with it. 0 = all that is left
    (training), all (test). Raises DataError with the counts of every class that has too few.
    """
    orders, classes = {}, {}
    for part in ("train", "test"):
        orders[part] = order = hash_order(f"{seed}:{part}:{id}" for id in source.ids(part))
        labels = source.labels(part)[order]
        classes[part] = {name: order[labels == label] for label, name in enumerate(source.class_names)}
    train, test = classes["train"].values(), classes["test"].values()
    _check_counts(classes["train"], classes["test"], train_per_class, validation_per_class, test_per_class)
    chosen = {
        "train": [indices[: train_per_class or len(indices) - validation_per_class] for indices in train],
        "validation": [indices[len(indices) - validation_per_class :] for indices in train],
        "test": [indices[: test_per_class or None] for indices in test],
    }
    return {  # the hash order of all images, which shuffles the classes
        split: orders[PARTS[split]][np.isin(orders[PARTS[split]], np.concatenate(indices))]
        for split, indices in chosen.items()
    }


def hash_order(texts: Iterable[str]) -> np.ndarray:
    """The indices of some texts in the order of their sha256, independent of any random generator's version."""
    hashes = [hashlib.sha256(text.encode()).digest() for text in texts]
    return np.array(sorted(range(len(hashes)), key=hashes.__getitem__), dtype=np.int64)


def _check_counts(train_classes: Classes, test_classes: Classes, train: int, validation: int, test: int) -> None:
    problems = []
    needed = (train or 1) + validation
    if short := _short(train_classes, needed):
        left = min(map(len, train_classes.values())) - validation
        cure = f"type --train-per-class {left}" if left > 0 else "type a smaller --validation-per-class"
        asked = f"{train or 'at least 1'} for training and {validation} for validation"
        problems.append(f"{asked} per class need {needed}, but {short} ({cure})")
    if short := _short(test_classes, test or 1):
        fewest = min(map(len, test_classes.values()))
        cure = f"type --test-per-class {fewest}" if fewest else "add some"
        problems.append(f"for the test {test or 'at least 1'} per class are needed, but {short} ({cure})")
    if problems:
        raise DataError(f"Too few images: {'; '.join(problems)}.")


def _short(classes: Classes, needed: int) -> str:
    """The classes with fewer images than needed, with their counts ("" = none)."""
    short = [f"{name} has {len(indices)}" for name, indices in classes.items() if len(indices) < needed]
    listed = ", ".join(short[:MAX_LISTED])
    return listed + (f" and {len(short) - MAX_LISTED} more classes" if len(short) > MAX_LISTED else "")
