"""Batch scoring: one row for each image in order, in every format, resumed to the same file."""

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from filelock import FileLock
from support.toys import make_image

from vitcifar.errors import DataError
from vitcifar.inference.session import OnnxClassifier
from vitcifar.release.manifest import Manifest
from vitcifar.serving import score as scoring
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.score import bounded_map, score
from vitcifar.serving.tables import COLUMNS

DIGEST = "d" * 64


@pytest.fixture
def model(toy_onnx: Path) -> LoadedModel:
    classifier = OnnxClassifier(toy_onnx, num_threads=1)
    fields = {"image_size": 8, "temperature": 1.0, "fingerprint": "", "run_id": "", "threshold": 0.6}
    manifest = Manifest(release_id="toy", model_name="toy", class_names=classifier.class_names, **fields)
    return LoadedModel(model_name="toy", version=3, manifest=manifest, classifier=classifier, digest=DIGEST)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight images at two depths, one of them broken, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for index, colour in enumerate(("red", "green", "blue") * 2):
        (folder / f"{index}.png").write_bytes(make_image(colour))
    (folder / "deep" / "red é.JPG").write_bytes(make_image("red", kind="JPEG"))
    (folder / "broken.png").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("none")
    return folder


def rows_of(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        rows = pyarrow.parquet.read_table(path).to_pylist()
        return [{**row, "probabilities": dict(row["probabilities"] or ()) or None} for row in rows]
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in lines]
    kinds = {"probability": float, "confident": eval, "probabilities": json.loads, "version": int}
    return [
        {name: kinds.get(name, str)(text) if text else None for name, text in row.items()}
        for row in csv.DictReader(lines)
    ]


def test_every_format_holds_the_same_rows_in_order(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    tables = []
    for suffix in (".parquet", ".csv", ".jsonl"):
        done = score(model, [str(photos)], tmp_path / f"out{suffix}")
        assert (done.num_rows, done.num_errors, done.num_resumed) == (8, 1, 0)
        tables.append(rows_of(done.out))
    rows = tables[0]
    assert [Path(str(row["path"])).name for row in rows] == [
        *(f"{index}.png" for index in range(6)),
        "broken.png",
        "red é.JPG",
    ]
    assert [row["label"] for row in rows] == ["red", "green", "blue"] * 2 + [None, "red"]
    assert all(list(row) == list(COLUMNS) for row in rows)
    assert all((row["model"], row["version"], row["digest"]) == ("toy", 3, DIGEST) for row in rows)
    assert rows[0]["confident"] is (rows[0]["probability"] >= 0.6)
    assert "broken.png" in str(rows[6]["error"]) and rows[6]["probabilities"] is None
    for other in tables[1:]:
        for row, same in zip(rows, other, strict=True):
            assert same["probabilities"] == pytest.approx(row["probabilities"]) if row["probabilities"] else True
            assert {**same, "probabilities": 0, "probability": 0} == {**row, "probabilities": 0, "probability": 0}
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.csv", "out.jsonl", "out.parquet"]


@pytest.mark.parametrize("cut", [0, 5, 150, 1000, 1500])
def test_a_killed_scoring_goes_on_to_the_same_file(
    model: LoadedModel, photos: Path, tmp_path: Path, cut: int, monkeypatch
) -> None:
    """A kill leaves the journal cut off anywhere."""
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    monkeypatch.setattr(Path, "unlink", lambda path, **options: None)  # keeps the journal
    score(model, [str(photos)], whole)
    monkeypatch.undo()
    journal = (tmp_path / "whole.jsonl.partial").read_bytes()
    (tmp_path / "resumed.jsonl.partial").write_bytes(journal[:cut])
    seen: list[str] = []
    real = scoring.predict_row
    monkeypatch.setattr(scoring, "predict_row", lambda model, item: seen.append(item[0]) or real(model, item))
    done = score(model, [str(photos)], resumed)
    assert resumed.read_bytes() == whole.read_bytes()
    complete = max(journal[:cut].count(b"\n") - 1, 0)
    assert (done.num_rows, done.num_resumed, len(seen)) == (8, complete, 8 - complete)


def test_a_journal_of_other_images_or_another_version_is_not_continued(
    model: LoadedModel, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    (tmp_path / "out.csv.partial").write_text(json.dumps({"model": "toy", "version": 2}) + "\n")
    with pytest.raises(DataError, match="is of another version or other images: delete it"):
        score(model, [str(photos)], out)


def test_lists_name_images_by_path_or_hold_their_bytes(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    """A path in a list is relative to the list."""
    (photos / "list.csv").write_text("id,path\n7,2.png\n8,deep/red é.JPG\n9,gone.png\n", encoding="utf-8")
    table = {"path": ["s3://bucket/a.png", "b.png"], "content": [make_image("green"), make_image("blue")]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "list.parquet")
    sources = [str(photos / "list.csv"), str(tmp_path / "list.parquet"), str(photos / "0.png")]
    rows = rows_of(score(model, sources, tmp_path / "out.jsonl").out)
    assert [row["label"] for row in rows] == ["blue", "red", None, "green", "blue", "red"]
    assert "gone.png" in str(rows[2]["error"]) and rows[3]["path"] == "s3://bucket/a.png"


def test_a_list_in_parts_and_rows_without_a_usable_path_are_scored(
    model: LoadedModel, photos: Path, tmp_path: Path
) -> None:
    stored = tmp_path / "stored.parquet"  # a folder, as Spark writes a table
    stored.mkdir()
    for part, colour in enumerate(("green", "blue")):
        table = pyarrow.table({"path": [None], "content": [make_image(colour)]})
        pyarrow.parquet.write_table(table, stored / f"part-{part}.parquet")
    (photos / "list.csv").write_text("id,path\n1\n2,a\0b.png\n3,0.png\n")
    rows = rows_of(score(model, [str(stored), str(photos / "list.csv")], tmp_path / "out.jsonl").out)
    assert [row["label"] for row in rows] == ["green", "blue", None, None, "red"]
    assert "is not a file" in str(rows[2]["error"]) and "cannot be the path of a file" in str(rows[3]["error"])


def test_a_journal_that_is_none_is_left_alone_and_two_processes_never_write_one(
    model: LoadedModel, photos: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    other.write_text("something else")
    with pytest.raises(DataError, match="delete it, or name another --out"):
        score(model, [str(photos)], out)
    assert other.read_text() == "something else"
    other.unlink()
    with FileLock(f"{other}.lock"), pytest.raises(DataError, match="Another process is writing"):
        score(model, [str(photos)], out)


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("nowhere", "out.csv", "There is no file or folder nowhere"),
        ("empty", "out.csv", "holds no images"),
        ("list.csv", "out.csv", "has no column of paths .*name one 'path'"),
        ("list.parquet", "out.csv", "cannot be read as a parquet file"),
        ("text.parquet", "out.csv", "'content' of text.parquet is string: expected the bytes of image files"),
        ("photos", "out.xlsx", "unknown format: name a file that ends with .parquet, .csv, .jsonl"),
        ("photos", "there.csv", "exists: delete it"),
        ("photos", "none/out.csv", "cannot be written"),
    ],
)
def test_what_cannot_be_scored_is_said(
    model: LoadedModel,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    out: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").touch()
    (tmp_path / "list.csv").write_text("id,name\n1,a.png\n")
    (tmp_path / "list.parquet").write_bytes(b"PAR1")
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a"], "content": ["text"]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match=message):
        score(model, [source], Path(out))


def test_a_slow_consumer_does_not_fill_the_memory() -> None:
    from concurrent.futures import ThreadPoolExecutor

    taken: list[int] = []
    values = (taken.append(index) or index for index in range(100))
    with ThreadPoolExecutor(2) as pool:
        results = bounded_map(pool, lambda value: value * 2, values, 8)
        assert [next(results) for _ in range(3)] == [0, 2, 4]
        assert len(taken) <= 11
        assert [*results] == [2 * index for index in range(3, 100)]
