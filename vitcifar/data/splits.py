"""Balanced splits of a source: the same members for a seed, on every machine and in every order of its files."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset, fingerprint
from vitcifar.data.sources import Source, open_source
from vitcifar.errors import DataError

MAX_TOLD = 20  # classes that an error lists


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Three sets of images, none of which shares an image with another."""

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
        """Role -> sha256 of its images."""
        return {split: fingerprint(dataset) for split, dataset in self.datasets.items()}

    @functools.cached_property
    def fingerprint(self) -> str:
        """One sha256 over the content of all three."""
        lines = "".join(f"{split} {digest}\n" for split, digest in self.fingerprints.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Role -> class -> number of images."""
        return {split: dataset.counts() for split, dataset in self.datasets.items()}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SplitIndices:
    """Which images of a source each split takes: places in the source's part, in the split's order."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def read_splits(config: TrainConfig) -> Splits:
    """The images that a config names; raises DataError."""
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
    """Choose the members and read them. Raises DataError when a class has too few images."""
    members = choose_indices(
        source,
        train_per_class=train_per_class,
        validation_per_class=validation_per_class,
        test_per_class=test_per_class,
        seed=seed,
    )
    return Splits(
        train=source.read("train", members.train),
        validation=source.read("train", members.validation),
        test=source.read("test", members.test),
    )


def choose_indices(
    source: Source, *, train_per_class: int, validation_per_class: int, test_per_class: int, seed: int
) -> SplitIndices:
    """Rank each class by hash: training takes from the front, validation from the back, test from the test part.

    So more training images (0 = all that validation left) add to the fewer, and validation stays as it is. For the
    test, 0 = all. Reads no image. Raises DataError with the counts of every class that has too few.
    """
    train_ranks, test_ranks = rank(seed, "train", source.ids("train")), rank(seed, "test", source.ids("test"))
    train_classes = _ranked_classes(source, "train", train_ranks)
    test_classes = _ranked_classes(source, "test", test_ranks)
    _check_counts(
        train_classes,
        test_classes,
        train_per_class=train_per_class,
        validation_per_class=validation_per_class,
        test_per_class=test_per_class,
    )
    train, validation = [], []
    for members in train_classes.values():
        rest = len(members) - validation_per_class
        train.append(members[: train_per_class or rest])
        validation.append(members[rest:])
    test = [members[: test_per_class or None] for members in test_classes.values()]
    return SplitIndices(
        train=_mixed(train, train_ranks), validation=_mixed(validation, train_ranks), test=_mixed(test, test_ranks)
    )


def rank(seed: int, part: str, ids: Iterable[str]) -> list[bytes]:
    """What decides the order: sha256 of seed, part and id, which no version of any random generator can change."""
    return [hashlib.sha256(f"{seed}:{part}:{id}".encode()).digest() for id in ids]


def _ranked_classes(source: Source, part: str, ranks: list[bytes]) -> dict[str, list[int]]:
    """Class name -> places of its images in the part, by rank."""
    classes: dict[str, list[int]] = {name: [] for name in source.class_names}
    labels = source.labels(part)
    for index in sorted(range(len(ranks)), key=ranks.__getitem__):
        classes[source.class_names[labels[index]]].append(index)
    return classes


def _mixed(chosen: list[list[int]], ranks: list[bytes]) -> np.ndarray:
    """All classes together, by rank, so that they come mixed."""
    return np.array(sorted((index for members in chosen for index in members), key=ranks.__getitem__), dtype=np.int64)


def _check_counts(
    train_classes: dict[str, list[int]],
    test_classes: dict[str, list[int]],
    *,
    train_per_class: int,
    validation_per_class: int,
    test_per_class: int,
) -> None:
    problems = []
    needed = (train_per_class or 1) + validation_per_class
    short = _short(train_classes, needed)
    if short:
        left = min(map(len, train_classes.values())) - validation_per_class
        cure = f"type --train-per-class {left}" if left > 0 else "type a smaller --validation-per-class"
        asked = f"{train_per_class or 'at least 1'} for training and {validation_per_class} for validation"
        problems.append(f"{asked} per class need {needed}, but {short} ({cure})")
    short = _short(test_classes, test_per_class or 1)
    if short:
        fewest = min(map(len, test_classes.values()))
        cure = f"type --test-per-class {fewest}" if fewest else "add some"
        problems.append(f"for the test {test_per_class or 'at least 1'} per class are needed, but {short} ({cure})")
    if problems:
        raise DataError(f"Too few images: {'; '.join(problems)}.")


def _short(classes: dict[str, list[int]], needed: int) -> str:
    """Which classes have fewer than needed, and how many each; "" = none."""
    short = [f"{name} has {len(members)}" for name, members in classes.items() if len(members) < needed]
    told = ", ".join(short[:MAX_TOLD])
    return told + (f" and {len(short) - MAX_TOLD} more classes too few" if len(short) > MAX_TOLD else "")
