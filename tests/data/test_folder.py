"""An image folder: its classes and splits, and what is skipped, refused or said."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitcifar.data.sources import open_source
from vitcifar.data.splits import make_splits
from vitcifar.errors import DataError


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


def test_a_folder_gives_its_classes_sorted_and_its_images_by_name(folder):
    source = open_source("folder", folder)
    assert source.class_names == ("cat", "dog")
    assert source.ids("test") == ("test/cat/0.png", "test/cat/1.png", "test/dog/0.png", "test/dog/1.png")
    assert source.labels("test").tolist() == [0, 0, 1, 1]
    assert source.labels("test").dtype == np.int64
    dataset = source.read("train", [7, 0, 1])
    assert dataset.ids == ("train/dog/3.png", "train/cat/0.png", "train/cat/1.png")
    assert [int(image[0, 0, 0]) for image in dataset.images] == [30, 0, 10]
    assert {image.shape for image in dataset.images} == {(5, 6, 3)}


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


def test_what_is_skipped_is_counted_and_named_in_one_note(folder):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (folder / "train" / "cat" / name).write_text("x")
    for part in ("train", "test"):
        for name in ("@eaDir", "__MACOSX", "lost+found", ".cache"):
            (folder / part / name).mkdir()
    save(folder / "train/loose.png")
    save(folder / "train/dog/more/1.png")
    (folder / "test/dog/gone.png").symlink_to(folder / "nowhere.png")
    (folder / "test/emu").symlink_to(folder / "nowhere")
    (folder / "masks").mkdir()
    with pytest.warns(UserWarning, match="Skipped") as notes:
        source = open_source("folder", folder)
    assert len(source.ids("train")) == 8 and len(source.ids("test")) == 4 and source.class_names == ("cat", "dog")
    assert [str(note.message).removeprefix(f"Skipped in {folder}: ") for note in notes] == [
        "11 hidden or system files and folders (train/.cache, train/@eaDir, train/__MACOSX and 8 more); "
        "2 links to nothing (test/emu, test/dog/gone.png); 1 folder that is no split (masks); "
        "1 image outside the folders of the classes (train/loose.png); 1 file that is not an image "
        "(train/cat/notes.txt); 1 folder inside the folder of a class (train/dog/more)."
    ]


def test_the_content_of_a_file_decides_where_its_ending_says_nothing(folder):
    """As `vitcifar predict` reads it."""
    cats = folder / "train" / "cat"
    (cats / "0.png").rename(cats / "no_ending")
    (cats / "1.png").rename(cats / "photo.orig")
    (cats / "2.png").rename(cats / "2.JFIF")
    (cats / "text").write_text("a b")
    with pytest.warns(UserWarning, match=r"Skipped in .*: 1 file that is not an image \(train/cat/text\)\."):
        source = open_source("folder", folder)
    names = [id.removeprefix("train/cat/") for id in source.ids("train") if "cat" in id]
    assert names == ["2.JFIF", "3.png", "no_ending", "photo.orig"]
    assert [int(image[0, 0, 0]) for image in source.read("train", range(4)).images] == [20, 30, 0, 10]


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


def test_two_classes_whose_names_look_alike_are_one_sentence(folder):
    for form in ("NFC", "NFD"):
        save(folder / "train" / unicodedata.normalize(form, "café") / "0.png")
    with pytest.raises(DataError, match="has two folders whose names look alike, café: put their images into one"):
        open_source("folder", folder)


def test_a_folder_that_cannot_be_listed_is_one_sentence(folder):
    with pytest.raises(DataError, match=r"a{300} cannot be read: File name too long\.$"):
        open_source("folder", folder / ("a" * 300))


# Validation


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_a_validation_folder_gives_the_validation_images_and_train_none(folder, name):
    for number in range(3):
        for class_name in ("cat", "dog"):
            save(folder / name / class_name / f"{number}.png", (0, number * 10, 0))
    with pytest.warns(UserWarning, match=rf"The validation images are those in .*/{name}, none of train\.$"):
        source = open_source("folder", folder)
    splits = make_splits(source, train_per_class=4, validation_per_class=2, test_per_class=1, seed=0)
    assert {split: len(dataset) for split, dataset in splits.datasets.items()} == {
        "train": 8, "validation": 4, "test": 2
    }  # fmt: skip
    assert all(id.startswith("validation/") for id in splits.validation.ids)
    assert splits.validation.images[..., 1].any() and not splits.train.images[..., 1].any()
    everything = make_splits(source, train_per_class=0, validation_per_class=0, test_per_class=0, seed=0)
    assert [len(dataset) for dataset in everything.datasets.values()] == [8, 6, 4]
    with pytest.raises(DataError) as caught:
        make_splits(source, train_per_class=5, validation_per_class=4, test_per_class=1, seed=0)
    assert str(caught.value) == (
        "Too few images: for training 5 per class are needed, but cat has 4, dog has 4 (type --train-per-class 4); for "
        "validation 4 per class are needed, but cat has 3, dog has 3 (type --validation-per-class 3)."
    )


def test_two_validation_folders_are_one_sentence(folder):
    for name in ("val", "valid"):
        save(folder / name / "cat" / "0.png")
    with pytest.raises(DataError, match=r"has two folders of validation images, val and valid: keep one of them\."):
        open_source("folder", folder)
    assert open_source("folder", folder, test_only=True).parts == ("test",)


def test_the_classes_of_a_validation_folder_are_compared_as_well(folder):
    save(folder / "val" / "cat" / "0.png")
    with (
        pytest.warns(UserWarning, match="validation images"),
        pytest.raises(DataError, match=r"The classes in .*/train and .*/val differ: dog only in train\.$"),
    ):
        open_source("folder", folder)


def test_all_of_a_validation_folder_cannot_be_asked_for_without_one(folder):
    with pytest.raises(DataError, match="there is none: type a number, such as --validation-per-class 25"):
        make_splits(open_source("folder", folder), train_per_class=1, validation_per_class=0, test_per_class=1, seed=0)


# A test part alone


def test_a_folder_with_a_test_part_alone_can_be_read_for_evaluation(folder):
    before = make_splits(
        open_source("folder", folder), train_per_class=1, validation_per_class=1, test_per_class=2, seed=0
    )
    shutil.rmtree(folder / "train")
    source = open_source("folder", folder, test_only=True)
    alone = make_splits(source, train_per_class=1, validation_per_class=1, test_per_class=2, seed=0)
    assert alone.test.ids == before.test.ids and alone.fingerprints["test"] == before.fingerprints["test"]
    assert len(alone.train) == len(alone.validation) == 0 and alone.class_names == ("cat", "dog")


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
        (
            lambda folder: [path.unlink() for path in (folder / "train" / "dog").iterdir()],
            r"No images in .*/train/dog: put some directly into each folder\.$",
        ),
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
