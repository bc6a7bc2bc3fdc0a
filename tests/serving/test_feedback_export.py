"""What an export writes and what it leaves out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcifar.data.dataset import ImageDataset, fingerprint, pixel_hash
from vitcifar.data.image import read_image
from vitcifar.errors import DataError
from vitcifar.serving.feedback import Entry, FeedbackStore
from vitcifar.serving.feedback_export import Known, export_feedback

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    return FeedbackStore(f"sqlite:///{tmp_path}/feedback.db")


def mark(store: FeedbackStore, index: int, truth: str | None, *, image: bool = True, **fields: Any) -> str:
    image_hash = pixel_hash(IMAGES[index])
    given = {"version": 1, "release_digest": "d", "label": "cat", "probability": 0.5, "source": "page", **fields}
    store.add(Entry(image_hash=image_hash, model="m", truth=truth, **given), IMAGES[index] if image else None)
    return image_hash


def export(store: FeedbackStore, folder: Path, **more: Any) -> Any:
    return export_feedback(store, store.entries("m"), folder, **{"golden": False, **more})


def files(folder: Path) -> dict[str, int]:
    return {path.name: len(list(path.iterdir())) for path in sorted(folder.iterdir()) if path.is_dir()}


@pytest.mark.parametrize("golden", [False, True])
def test_images_lie_in_the_folder_of_their_true_class_with_where_they_come_from(store, tmp_path, golden):
    cat, dog = mark(store, 0, "cat"), mark(store, 1, "dog")
    mark(store, 1, "dog", version=2, release_digest="d2")
    done = export(store, tmp_path / "out", golden=golden)
    target = tmp_path / "out" if golden else tmp_path / "out/train"
    assert files(target) == {"cat": 1, "dog": 1} == done.counts
    record = json.loads((tmp_path / "out/feedback.json").read_text())
    by_hash = {one["image_hash"]: (name, one) for name, one in record["images"].items()}
    name, dog_record = by_hash[dog]
    assert (read_image(tmp_path / "out" / name) == IMAGES[1]).all() and dog_record["truth"] == "dog"
    marks = [(one["version"], one["label"], one["source"], one["time"][-1]) for one in dog_record["feedback"]]
    assert marks == [(1, "cat", "page", "Z"), (2, "cat", "page", "Z")] and cat in by_hash
    order = [index for index, _ in sorted(enumerate([cat, dog]), key=lambda pair: by_hash[pair[1]][0])]
    dataset = ImageDataset(
        images=IMAGES[order], labels=np.array(order, dtype=np.int64), class_names=("cat", "dog"), ids=("a", "b")
    )
    assert record["fingerprint"] == done.fingerprint == fingerprint(dataset)


def test_a_second_export_adds_what_is_new_and_keeps_the_record(store, tmp_path):
    mark(store, 0, "cat")
    first = export(store, tmp_path / "out")
    mark(store, 1, "cat")
    second = export(store, tmp_path / "out")
    assert (second.counts, second.num_known) == ({"cat": 1}, 1)
    assert files(tmp_path / "out/train") == {"cat": 2} and first.fingerprint != second.fingerprint
    assert len(json.loads((tmp_path / "out/feedback.json").read_text())["images"]) == 2
    assert export(store, tmp_path / "out").fingerprint == second.fingerprint


def test_what_has_no_sure_class_or_no_image_is_left_out_and_said(store, tmp_path):
    both = mark(store, 0, "cat")
    mark(store, 0, "dog")
    none, absent = mark(store, 1, None), mark(store, 2, "cat", image=False)
    odd = [mark(store, 3 + index, truth) for index, truth in enumerate(["../cat", "..", "a/b", ".hidden"])]
    done = export(store, tmp_path / "out")
    assert done.left_out == {
        "marked in different ways": [both],
        "of none of the classes": [none],
        "kept without their image": [absent],
        "of a class whose name is no folder": odd,
    }
    assert done.counts == {} and list((tmp_path / "out").rglob("*.png")) == []


def test_no_image_of_a_test_split_is_exported_for_training(store, tmp_path):
    """Neither one of the version's own test images, nor of the folder's, nor one that is nearly the same."""
    hashes = [mark(store, index, "cat") for index in range(4)]
    for split, index in (("test", 1), ("val", 2)):
        path = tmp_path / f"data/{split}/cat"
        path.mkdir(parents=True)
        Image.fromarray(IMAGES[index]).save(path / "a.png")
    brighter = np.clip(IMAGES[0].astype(int) + 3, 0, 255).astype(np.uint8)
    known = [Known(name="the test images of version 1", images=brighter[None])]
    done = export(store, tmp_path / "data", known=known)
    assert done.counts == {"cat": 1} and list((tmp_path / "data/train/cat").glob(f"*{hashes[3][:20]}*"))
    assert done.left_out == {
        "like one of the test images of version 1": [hashes[0]],
        f"like one of {tmp_path}/data/test": [hashes[1]],
        f"like one of {tmp_path}/data/val": [hashes[2]],
    }


def test_a_class_that_the_dataset_does_not_have_is_left_out(store, tmp_path):
    (tmp_path / "data/train/dog").mkdir(parents=True)
    cat = mark(store, 0, "cat")
    mark(store, 1, "dog")
    done = export(store, tmp_path / "data")
    assert done.counts == {"dog": 1} and done.left_out == {"of a class that the folder does not have": [cat]}


def test_a_folder_that_cannot_be_written_or_has_another_record_is_one_sentence(store, tmp_path):
    mark(store, 0, "cat")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        export(store, tmp_path / "file/out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/feedback.json").write_text("[]")
    with pytest.raises(DataError, match="is not the record of an export"):
        export(store, tmp_path / "out")
    assert not (tmp_path / "out/train").exists()
