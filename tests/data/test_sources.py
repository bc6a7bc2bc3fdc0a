"""Digits, folders, CIFAR-10's sample and the preview of what they hold."""

import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.sources import open_source
from vitcifar.data.splits import make_splits
from vitcifar.errors import DataError, ImageError


def save(path: Path, colour: object = "red", size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes with 4 training and 2 test images each; how red an image is tells its number."""
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                save(tmp_path / part / name / f"{number}.png", (number * 10, 0, 0))
    return tmp_path


def test_a_source_that_does_not_exist_is_answered_with_those_that_do(tmp_path):
    with pytest.raises(DataError, match="choose one of cifar10, folder, digits"):
        open_source("mnist", tmp_path)


# Digits


def test_digits_are_scikit_learns_in_grey_with_a_fixed_test_part_of_40_a_class():
    source = open_source("digits", Path("not used"))
    assert source.class_names == tuple("0123456789")
    assert np.bincount(source.labels("test")).tolist() == [40] * 10
    assert len(source.ids("train")) == 1797 - 400
    assert not set(source.ids("train")) & set(source.ids("test"))
    dataset = source.read("train", range(len(source.ids("train"))))
    assert dataset.images.shape == (1397, 8, 8, 3)
    assert dataset.images.dtype == np.uint8
    assert (dataset.images.min(), dataset.images.max()) == (0, 255)
    assert (dataset.images[..., 0] == dataset.images[..., 2]).all()


def test_digits_keep_their_ids_and_labels_in_any_order():
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = open_source("digits", Path("not used"))
    dataset = source.read("test", [399, 0, 17])
    assert dataset.ids == tuple(source.ids("test")[place] for place in (399, 0, 17))
    for image, label, id in zip(dataset.images, dataset.labels, dataset.ids, strict=True):
        number = int(id.removeprefix("digits/"))
        assert digits.target[number] == label
        assert np.abs(digits.images[number] * 255 / 16 - image[..., 1]).max() <= 0.5


# Folder


def test_a_folder_gives_its_classes_sorted_and_its_images_by_name(folder):
    source = open_source("folder", folder)
    assert source.class_names == ("cat", "dog")
    assert source.ids("test") == ("test/cat/0.png", "test/cat/1.png", "test/dog/0.png", "test/dog/1.png")
    assert source.labels("test").tolist() == [0, 0, 1, 1]
    assert source.labels("test").dtype == np.int64
    dataset = source.read("train", [7, 0, 1])
    assert dataset.ids == ("train/dog/3.png", "train/cat/0.png", "train/cat/1.png")
    assert dataset.images[:, 0, 0, 0].tolist() == [30, 0, 10]
    assert dataset.images.shape == (3, 5, 6, 3)


def test_images_of_different_sizes_come_as_a_list(folder):
    save(folder / "train" / "cat" / "wide.png", size=(60, 5))
    source = open_source("folder", folder)
    images = source.read("train", range(9)).images
    assert isinstance(images, list)
    assert {image.shape for image in images} == {(5, 6, 3), (5, 60, 3)}


def test_a_copy_of_the_folder_in_another_place_and_listed_in_another_order_gives_the_same_splits(
    folder, tmp_path_factory, monkeypatch
):
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, copy)
    sizes = {"train_per_class": 2, "validation_per_class": 2, "test_per_class": 1, "seed": 4}
    here = make_splits(open_source("folder", folder), **sizes)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    there = make_splits(open_source("folder", copy), **sizes)
    assert there.train.ids == here.train.ids
    assert there.fingerprint == here.fingerprint


def test_what_systems_leave_behind_is_skipped_silently(folder):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / "train" / "cat" / name).write_bytes(b"x")
    (folder / "train" / ".cache").mkdir()
    assert len(open_source("folder", folder).ids("train")) == 8


def test_other_files_among_the_images_are_skipped_with_a_warning(folder):
    for name in ("notes.txt", "a.csv"):
        (folder / "train" / "cat" / name).write_text("x")
    with pytest.warns(UserWarning, match=r"Skipped in .*cat, not an image by file extension: a\.csv and 1 more"):
        source = open_source("folder", folder)
    assert len(source.ids("train")) == 8


def test_one_of_the_files_being_broken_is_named(folder):
    (folder / "train" / "dog" / "2.png").write_bytes(b"not an image")
    source = open_source("folder", folder)
    with pytest.raises(ImageError, match=r"train/dog/2\.png is not a supported image"):
        source.read("train", range(8))
    source.read("train", range(6))  # a broken image that nobody asked for harms nobody


def test_all_broken_files_are_named_at_once(folder):
    for name in ("cat/1", "cat/3", "dog/0"):
        (folder / "train" / f"{name}.png").write_bytes(b"not an image")
    with pytest.raises(ImageError) as caught:
        open_source("folder", folder).read("train", range(8))
    assert re.findall(r"train/(\w+/\d)\.png is not", str(caught.value)) == ["cat/1", "cat/3", "dog/0"]


def test_folders_of_the_system_are_no_classes(folder):
    for part in ("train", "test"):
        for name in ("@eaDir", "__MACOSX", "lost+found"):
            (folder / part / name).mkdir()
    with pytest.warns(UserWarning, match=r"Skipped in .*train, .*: @eaDir, __MACOSX, lost\+found\."):
        source = open_source("folder", folder)
    assert source.class_names == ("cat", "dog")


def test_composed_and_decomposed_names_are_the_same(folder, tmp_path_factory):
    """macOS and Linux store "é" differently; members and label order must not depend on it."""
    sources = []
    for train, test in (("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")):
        other = tmp_path_factory.mktemp("names")
        for part, form in (("train", train), ("test", test)):
            for name in ("café", "caz"):
                for file in (folder / part / "cat").iterdir():
                    target = (
                        other
                        / part
                        / unicodedata.normalize(form, name)
                        / f"{unicodedata.normalize(form, 'ü')}{file.name}"
                    )
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, target)
        sources.append(open_source("folder", other))
    assert sources[0].class_names == ("café", "caz")
    splits = [
        make_splits(source, train_per_class=2, validation_per_class=1, test_per_class=1, seed=0) for source in sources
    ]
    assert len({split.fingerprint for split in splits}) == 1 and len({split.train.ids for split in splits}) == 1


def test_a_name_that_is_not_utf8_is_one_sentence(folder):
    shutil.copy(folder / "train/cat/0.png", os.fsencode(folder / "train/cat") + b"/caf\xe9.png")
    with pytest.raises(DataError, match=r"file names that are not valid UTF-8: rename 'caf\\udce9\.png'"):
        open_source("folder", folder)


@pytest.mark.parametrize("ending", [".jfif", ".JPE"])
def test_every_ending_of_jpeg_is_read(folder, ending):
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / f"0{ending}")
    assert len(open_source("folder", folder).ids("train")) == 8


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: shutil.rmtree(folder),
            r"^There is no folder .*: name the image folder with --data-dir\.$",
        ),
        (lambda folder: shutil.rmtree(folder / "train"), r"^There is no folder .*train: expected .*train/<class>/"),
        (lambda folder: shutil.rmtree(folder / "test"), r"^There is no folder .*test: expected .*test/<class>/"),
        (
            lambda folder: [shutil.rmtree(path) for path in (folder / "test").iterdir()],
            "test has no class folders: expected",
        ),
        (lambda folder: shutil.rmtree(folder / "test" / "dog"), "differ: dog only in train"),
        (lambda folder: save(folder / "test" / "emu" / "a.png"), "differ: emu only in test"),
        (
            lambda folder: (folder / "test" / "dog").rename(folder / "test" / "Dog"),
            "dog only in train; Dog only in test",
        ),
        (
            lambda folder: [shutil.rmtree(folder / part / "dog") for part in ("train", "test")],
            "one class, cat: a classifier needs at least 2",
        ),
        (lambda folder: [path.unlink() for path in (folder / "train" / "dog").iterdir()], "dog has no images"),
    ],
    ids=["nothing", "no train", "no test", "test is empty", "less", "more", "other case", "one class", "empty class"],
)
def test_a_folder_that_is_incomplete_reports_what_is_missing(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        open_source("folder", folder)


def test_more_images_than_the_folder_has_are_reported_with_the_counts(folder):
    with pytest.raises(DataError, match=r"cat has 4, dog has 4 \(type --train-per-class 2\)"):
        make_splits(open_source("folder", folder), train_per_class=3, validation_per_class=2, test_per_class=1, seed=0)


@pytest.fixture
def sample() -> Path:
    if "VITCIFAR_SAMPLE" not in os.environ:
        pytest.skip("VITCIFAR_SAMPLE names no folder with images of CIFAR-10 (train/<class>/*, test/<class>/*)")
    return Path(os.environ["VITCIFAR_SAMPLE"])


def test_the_sample_of_cifar10_gives_balanced_splits(sample):
    source = open_source("folder", sample)
    splits = make_splits(source, train_per_class=100, validation_per_class=25, test_per_class=25, seed=0)
    assert splits.class_names == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
    )  # fmt: skip
    assert splits.train.images.shape == (1000, 32, 32, 3)
    assert set(splits.counts()["validation"].values()) == set(splits.counts()["test"].values()) == {25}
    assert splits.fingerprint == "d75fac2d2b431bc7acb00345bdb647de01ac898ee7adae975e4c6a45ca34de3a"
    with pytest.raises(DataError, match=r"airplane has 160, .*truck has 160 .type --train-per-class 135"):
        make_splits(source, train_per_class=136, validation_per_class=25, test_per_class=25, seed=0)


# Preview


def some(num: int, class_names: tuple[str, ...], size: tuple[int, int] = (8, 8)) -> ImageDataset:
    images = np.full((num, *size, 3), (255, 0, 0), np.uint8)
    labels = np.arange(num, dtype=np.int64) % len(class_names)
    return ImageDataset(images=images, labels=labels, class_names=class_names, ids=tuple(map(str, range(num))))


def count_red(sheet: Image.Image) -> int:
    return int((np.asarray(sheet) == (255, 0, 0)).all(axis=2).sum())
