"""Image files: in memory once, or decoded each time, with the same result."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image

from vitcifar.data import files
from vitcifar.data.files import ImageFiles, load_files
from vitcifar.data.image import read_image
from vitcifar.data.sources import open_source
from vitcifar.data.splits import make_splits, read_splits
from vitcifar.errors import DataError, ImageError
from vitcifar.presets import resolve

COUNTS = {"train_per_class": 2, "validation_per_class": 1, "test_per_class": 2}


def save(path: Path, seed: int, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes with 3 training and 2 test images each, JPEGs of one size."""
    for seed, (part, name, number) in enumerate(
        [
            (part, name, i)
            for part, count in (("train", 3), ("test", 2))
            for name in ("cat", "dog")
            for i in range(count)
        ]
    ):
        save(tmp_path / part / name / f"{number}.jpg", seed)
    return tmp_path


def test_the_splits_are_the_same_in_memory_and_decoded_on_demand(folder):
    source = open_source("folder", folder)
    held = make_splits(source, **COUNTS, seed=0, cache_memory=10 * 40 * 30 * 3 / 1e9)
    with pytest.warns(UserWarning, match=r"need 3.6e-05 GB, more than cache_memory \(3.59e-05 GB\): each is decoded"):
        demanded = make_splits(source, **COUNTS, seed=0, cache_memory=3.59e-5)
    assert isinstance(held.train.images, np.ndarray) and isinstance(demanded.train.images, ImageFiles)
    assert demanded.fingerprints == held.fingerprints
    for split in held.datasets:
        ours, theirs = held.datasets[split], demanded.datasets[split]
        np.testing.assert_array_equal(ours.images, np.stack(theirs.images[: len(theirs)]))
        np.testing.assert_array_equal(ours.images[1], theirs.images[np.int64(1)])


def test_images_of_one_size_are_an_array_and_of_several_a_list(tmp_path):
    paths = [save(tmp_path / f"{seed}.png", seed) for seed in range(3)]
    expected = [read_image(path) for path in paths]
    np.testing.assert_array_equal(ImageFiles(paths).load("train"), np.stack(expected))
    mixed = ImageFiles([*paths, save(tmp_path / "wide.png", 3, (60, 5))])
    images = mixed.load("train")
    assert isinstance(images, list) and mixed.num_bytes() == sum(image.nbytes for image in images)
    assert [image.shape for image in images] == [(30, 40, 3)] * 3 + [(5, 60, 3)]


def test_an_image_that_its_metadata_turns_has_its_own_size(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    paths = [save(tmp_path / "0.jpg", 0), save(tmp_path / "1.jpg", 1, exif=exif), save(tmp_path / "2.jpg", 2)]
    images = ImageFiles(paths).load("train")
    assert [image.shape for image in images] == [(30, 40, 3), (40, 30, 3), (30, 40, 3)]
    for image, path in zip(images, paths, strict=True):
        np.testing.assert_array_equal(image, read_image(path))


def test_a_large_image_counts_as_it_is_decoded(tmp_path):
    large = ImageFiles([save(tmp_path / "large.jpg", 0, (1400, 700))])
    assert large.num_bytes() == 1024 * 512 * 3 == large[0].nbytes


def test_all_broken_files_of_all_splits_are_named_at_once(folder):
    for name in ("train/cat/1", "train/dog/0", "test/dog/1"):
        (folder / f"{name}.jpg").write_bytes(b"not an image")
    source = open_source("folder", folder)
    with pytest.raises(ImageError) as caught:
        make_splits(source, **COUNTS, seed=0)
    named = re.findall(r"(\w+/\w+/\d)\.jpg is not a supported image", str(caught.value))
    assert sorted(named) == ["test/dog/1", "train/cat/1", "train/dog/0"]
    with pytest.raises(ImageError, match=r"cat/1\.jpg is not .*dog/0\.jpg is not"):
        [*source.read("train", range(6)).images]
    source.read("train", [0, 2]).images[:]  # a broken image that nobody asked for harms nobody


def test_a_broken_file_that_was_not_chosen_is_named_with_one_that_was(folder):
    broken = [f"train/cat/{number}" for number in range(3)] + ["test/dog/0", "test/dog/1"]
    for name in broken:
        (folder / f"{name}.jpg").write_bytes(b"not an image")
    one = {"train_per_class": 1, "validation_per_class": 1, "test_per_class": 1}
    with pytest.raises(ImageError) as caught:
        make_splits(open_source("folder", folder), **one, seed=0)
    assert sorted(re.findall(r"(\w+/\w+/\d)\.jpg is not a supported image", str(caught.value))) == sorted(broken)


def test_broken_files_are_named_at_once_as_well_when_images_are_decoded_on_demand(folder):
    for name in ("train/cat/1", "train/dog/0"):
        (folder / f"{name}.jpg").write_bytes(b"not an image")
    config = resolve("cifar10", data="folder", data_dir=str(folder), cache_memory=0.0, **COUNTS)
    with pytest.warns(UserWarning, match="more than cache_memory"), pytest.raises(ImageError) as caught:
        read_splits(config)
    assert len(re.findall(r"(?:cat/1|dog/0)\.jpg is not", str(caught.value))) == 2


def test_images_stay_below_half_of_the_free_memory(folder, monkeypatch):
    monkeypatch.setattr(files.psutil, "virtual_memory", lambda: SimpleNamespace(available=60_000))
    images = {"train": ImageFiles([folder / "train/cat/0.jpg"] * 9)}
    with pytest.warns(UserWarning, match=r"3.24e-05 GB, more than half of the free memory \(3e-05 GB\)"):
        assert load_files(images, 4.0) == {}


def test_more_images_than_memory_are_one_sentence(tmp_path):
    huge = ImageFiles([save(tmp_path / "0.png", 0)])
    huge.shapes = [(2**30, 2**30, 3)]
    with pytest.raises(DataError, match=r"not enough memory for the images of train, .* type a smaller --cache-memory"):
        huge.load("train")
