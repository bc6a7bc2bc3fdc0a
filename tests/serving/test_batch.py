"""Predictions of many files, and their table."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.serving import run_without_torch
from support.toys import make_image

from vitcifar.serving.batch import PredictionTable, predict_files


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """An image, a text file, a missing file, another image."""
    paths = [tmp_path / name for name in ("red.png", "text.png", "none.png", "blue.jpg")]
    paths[0].write_bytes(make_image("red"))
    paths[1].write_text("no image")
    paths[3].write_bytes(make_image("blue", kind="JPEG"))
    return paths


def test_a_bad_file_gets_an_error_and_the_others_are_classified(model, files):
    rows = list(predict_files(model, files))
    assert [row.get("label") for row in rows] == ["red", None, None, "blue"]
    assert "text.png" in rows[1]["error"] and "none.png" in rows[2]["error"]
    assert set(rows[1]) == {"path", "error"}


def test_a_row_has_the_keys_of_every_entry_point_and_is_json(model, files):
    row = next(predict_files(model, files))
    assert list(row) == ["path", "label", "probabilities", "model", "version", "release_id", "timing"]
    assert (row["model"], row["version"], row["release_id"]) == ("colours", 7, "toy") and row["timing"]["total_ms"] > 0
    assert list(row["probabilities"]) == ["red", "green", "blue"]
    assert json.loads(json.dumps(row)) == row


def test_the_lines_of_the_table_are_aligned_with_the_heading(model, files):
    table = PredictionTable(model, files)
    lines = [table.heading(), *(table.line(row) for row in predict_files(model, files))]
    assert len(lines[0]) == len(lines[1]) == len(lines[4])
    assert lines[0].index("label") == lines[1].index("red  ")
    assert "text.png is not a supported image" in lines[2]


def test_control_characters_in_a_file_name_are_escaped(model):
    (row,) = predict_files(model, ["bad\x1b[31m.png"])
    assert "\x1b" not in row["path"] + row["error"]


def test_files_are_classified_one_by_one(model, files):
    rows = predict_files(model, iter(files))
    assert isinstance(rows, Iterator) and next(rows)["label"] == "red"


def test_batch_prediction_does_not_load_torch(registry, tmp_path):
    (tmp_path / "red.png").write_bytes(make_image("red"))
    run_without_torch(
        "from vitcifar.serving.batch import predict_files\n"
        "from vitcifar.serving.loaded_model import open_version\n"
        "from vitcifar.registry.registry import Registry\n"
        "assert next(predict_files(open_version(Registry('toy'), 'champion'), ['red.png']))['label']",
        tmp_path,
    )
