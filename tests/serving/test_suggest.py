"""Suggestions of images to label: what is chosen of a folder, what is left out, and the table that says it."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.watched import WatchedRegistry, colours

from vitcifar.data.dataset import pixel_hash
from vitcifar.errors import DataError
from vitcifar.serving import embeddings
from vitcifar.serving.embeddings import embed_folder
from vitcifar.serving.feedback_export import Known
from vitcifar.serving.loaded_model import LoadedModel, open_version
from vitcifar.serving.suggest import Suggested, read_suggestions, suggest, write_suggestions

LIMIT = 10**8  # bytes of the cache


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    registry: Any = WatchedRegistry(tmp_path)
    return open_version(registry, 1, num_threads=1)


@pytest.fixture
def images() -> np.ndarray:
    """Images of one colour each, of 4 x 4 pixels with a bright corner: others are no near-duplicates."""
    made = colours(30, seed=3).copy()
    for index, image in enumerate(made):
        image[index // 4 % 4, index % 4] = 255
    return made


@pytest.fixture
def photos(tmp_path: Path, images: np.ndarray) -> Path:
    """The images as files of a folder, a broken one and one that is no image among them."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / ("more" if index % 3 else ".") / f"{index:02}.png")
    (folder / "more" / "broken.png").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def hashes(done: Suggested) -> list[str]:
    return [one.image_hash for one in done.suggestions]


def test_it_suggests_uncertain_images_with_the_prediction_that_the_version_gives(model, photos):
    done = suggest(model, photos, 8)
    assert len(done.suggestions) == 8 and done.num_images == 31 and not done.left_out
    probabilities = [model.predict(path).probability for path in photos.rglob("*.png") if path.stem != "broken"]
    assert np.mean([one.probability for one in done.suggestions]) < np.mean(probabilities)
    for one in done.suggestions:
        prediction = model.predict(one.path)
        assert (one.label, one.image_hash) == (prediction.label, pixel_hash(np.asarray(Image.open(one.path))))
        assert one.probability == pytest.approx(prediction.probability, abs=1e-6)


def test_a_broken_image_has_its_error_and_the_others_are_suggested(model, photos):
    done = suggest(model, photos, 100)
    assert len(done.suggestions) == 30
    assert list(done.errors) == [str(photos / "more" / "broken.png")]
    assert "broken.png is not a supported image" in next(iter(done.errors.values()))


def test_labelled_and_known_images_and_copies_are_left_out(model, photos, images):
    Image.fromarray(images[20]).save(photos / "copy of 20.bmp")
    labelled = {pixel_hash(image) for image in images[:4]}
    near = images[6].copy()
    near[0, 0] -= 1
    known = [Known(name="the train images of version 1", images=np.stack([images[5], near]))]
    done = suggest(model, photos, 100, labelled=labelled, known=known)
    assert done.left_out == {
        "labelled already": 4,
        "like one of the train images of version 1": 2,
        "the same as another": 1,
    }
    assert set(hashes(done)) == {pixel_hash(image) for image in (images[4], *images[7:])}


def test_embeddings_are_computed_once_and_again_only_for_files_that_are_new_or_changed(model, photos, monkeypatch):
    read: list[str] = []
    real = embeddings.read_image
    monkeypatch.setattr(embeddings, "read_image", lambda path: read.append(path.name) or real(path))
    first = embed_folder(model, photos, max_bytes=LIMIT)
    assert len(read) == 31
    read.clear()
    again = embed_folder(model, photos, max_bytes=LIMIT)
    assert read == ["broken.png"], "its error is not kept"
    assert again.paths == first.paths and again.hashes == first.hashes
    for name in embeddings.ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    read.clear()
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(photos / "new.png")
    Image.fromarray(np.full((5, 5, 3), 9, np.uint8)).save(photos / "00.png")
    (photos / "more" / "01.png").unlink()
    changed = embed_folder(model, photos, max_bytes=LIMIT)
    assert sorted(read) == ["00.png", "broken.png", "new.png"] and len(changed.paths) == 30
    read.clear()
    embed_folder(model, photos, max_bytes=0)
    assert len(read) == 31


def test_a_damaged_file_of_the_cache_is_computed_again_and_one_of_another_version_is_not_used(model, photos, tmp_path):
    first = embed_folder(model, photos, max_bytes=LIMIT)
    (file,) = (tmp_path / "cache" / "features").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = embed_folder(model, photos, max_bytes=LIMIT)
    np.testing.assert_array_equal(again.thumbnails, first.thumbnails)
    other = open_version(WatchedRegistry(tmp_path), 2, num_threads=1)  # type: ignore[arg-type]
    embed_folder(other, photos, max_bytes=LIMIT)
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_said_and_does_not_stop(model, photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "file"))
    assert len(embed_folder(model, photos, max_bytes=LIMIT).paths) == 30
    assert "The embeddings are not kept in" in capsys.readouterr().err


def test_what_was_computed_before_an_interruption_is_kept(model, photos, monkeypatch):
    real = embeddings._compute

    def interrupted(*given: Any) -> Any:
        for number, one in enumerate(real(*given)):
            if number == 12:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(embeddings, "_compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_folder(model, photos, max_bytes=LIMIT)
    missing: list[int] = []
    monkeypatch.setattr(embeddings, "_compute", lambda *given: missing.append(len(given[-1])) or real(*given))
    assert len(embed_folder(model, photos, max_bytes=LIMIT).paths) == 30
    assert missing == [31 - 12]


def test_the_table_holds_what_was_suggested_and_is_read_without_its_errors(model, photos, tmp_path):
    done = suggest(model, photos, 5)
    write_suggestions(model, done, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", ""]
    assert "not a supported image" in rows[5]["error"] and not rows[0]["error"]
    assert (rows[0]["model"], rows[0]["version"], rows[0]["digest"]) == ("colours", "1", model.digest)
    read = read_suggestions(tmp_path / "table.csv")
    assert [(one.path, one.image_hash) for one in read] == [(one.path, one.image_hash) for one in done.suggestions]


def test_any_csv_with_a_column_of_paths_can_be_labelled(tmp_path):
    (tmp_path / "list.csv").write_text("file,note\na.png,first\n,none\nsub/b.png,\n")
    assert [one.path for one in read_suggestions(tmp_path / "list.csv")] == [
        str(tmp_path / "a.png"),
        str(tmp_path / "sub/b.png"),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "vitcifar suggest FOLDER --out"), (b"a,b\n1,2\n", "no column of paths"), (b"path\n", "0 images to label")],
    ids=["missing", "no paths", "empty"],
)
def test_a_table_that_cannot_be_used_is_one_sentence(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        read_suggestions(tmp_path / "table.csv")


def test_a_folder_that_does_not_exist_or_holds_no_images_is_one_sentence(model, tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        suggest(model, tmp_path / "nowhere", 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        suggest(model, tmp_path / "empty", 5)
