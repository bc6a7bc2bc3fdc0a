"""The audit as sections and as a table."""

import csv
import dataclasses
import io

import numpy as np
import pytest
from support.noise import some_images
from support.reports import HOSTILE, Page
from support.textures import textured_image

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.audit import audit_images
from vitcifar.report.audit import COLUMNS, MAX_CLASSES, MAX_SHOWN, audit_csv, audit_sections, data_section
from vitcifar.report.html import html_report

NAMES = ("=1+1", *HOSTILE[1:], "猫")


@pytest.fixture(scope="module")
def audit():
    """Two identical images of two classes, a dark one and a label that predictions contradict, with hostile names."""
    images = np.stack([textured_image(24, 24, seed) for seed in range(20)])
    images[1], images[2] = images[0], images[2] * 0.2
    labels = np.arange(20) % len(NAMES)
    ids = tuple(f"train/<script>alert({index})</script> 画像.png" for index in range(20))
    dataset = ImageDataset(images=images, labels=labels, class_names=NAMES, ids=ids)
    probabilities = np.where(np.eye(len(NAMES))[labels] == 1, 0.8, 0.05)
    probabilities[5] = [0.04, 0.84, 0.04, 0.04, 0.04]  # of class 0
    return audit_images({"train": dataset}, probabilities={"train": probabilities})


def test_the_table_has_one_row_for_each_image_and_finding(audit):
    head, *rows = csv.reader(io.StringIO(audit_csv(audit)))
    assert tuple(head) == COLUMNS == ("file", "split", "class", "kind", "score", "suggestion")
    assert [row[3] for row in rows] == ["label error", "identical", "identical", "dark"]
    assert rows[0][0] == audit.datasets["train"].ids[5] and rows[0][4] == "0.0400"
    assert all(0 <= float(row[4]) <= 1 and row[5] for row in rows)


def test_a_spreadsheet_computes_nothing_in_the_table(audit):
    rows = [*csv.reader(io.StringIO(audit_csv(audit)))]
    assert "'=1+1" in {row[2] for row in rows} and "=1+1" not in {cell for row in rows for cell in row}


def test_the_report_shows_every_kind_and_escapes_names_of_files_and_classes(audit):
    parts = audit_sections(audit)
    assert [part.title for part in parts] == [
        "Summary",
        "Class balance",
        "Likely label errors",
        "Identical images",
        "Dark",
    ]
    page = html_report("Data audit", parts)
    read = Page(page)
    assert "script" not in read.tags and not any(name.startswith("on") for name, _ in read.attributes)
    assert audit.datasets["train"].ids[5] in read.text and "rather <script>alert(1)</script> (84%), train" in read.text
    assert "default-src 'none'; img-src data:" in page and "http" not in page.replace("http-equiv", "")


def test_a_pair_is_shown_once_beside_each_other(audit):
    (section,) = [part for part in audit_sections(audit) if part.title == "Identical images"]
    assert [tile.id for tile in section.tiles] == [audit.datasets["train"].ids[index] for index in (0, 1)]


def test_the_class_balance_is_counted_and_of_many_classes_the_smallest_are_shown():
    names = tuple(f"class {index}" for index in range(MAX_CLASSES + 5))
    labels = np.concatenate([np.arange(len(names)), np.arange(10)])
    images = np.stack([textured_image(8, 8, seed) for seed in range(len(labels))])
    dataset = ImageDataset(
        images=images, labels=labels, class_names=names, ids=tuple(f"p{index}" for index in range(len(labels)))
    )
    section = audit_sections(audit_images({"train": dataset}, probabilities={}))[1]
    assert section.text == "Images of each class: train 1 to 2."
    rows = section.tables[0].rows
    assert len(rows) == MAX_CLASSES and rows[0] == ["class 10", "1"] and "fewest images" in section.tables[0].note


def test_of_many_issues_the_first_are_shown_and_their_number_is_said(audit):
    many = [dataclasses.replace(audit.of_kind("dark")[0], id=f"n{index}", index=index % 20) for index in range(60)]
    section = audit_sections(dataclasses.replace(audit, issues=tuple(many)))[-1]
    assert len(section.tiles) <= MAX_SHOWN and f"The first {MAX_SHOWN} of 60 are shown" in section.text


def test_a_run_s_section_has_the_counts_and_the_worst_of_each_kind(audit):
    section = data_section(audit)
    assert {number.name: number.value for number in section.numbers} == {
        "Images": "20", "Accuracy": "95.0%", "Likely label errors": "1", "Identical images": "2", "Dark": "1"
    }  # fmt: skip
    assert [tile.title for tile in section.tiles] == ["label error", "identical", "identical", "dark"]
    assert "vitcifar data audit" in section.text


def test_nothing_found_is_said():
    clean = some_images(np.stack([textured_image(16, 16, seed) for seed in range(4)]))
    audit = audit_images({"train": clean}, probabilities={})
    assert data_section(audit).findings[0].text == audit_sections(audit)[0].findings[0].text
    assert data_section(audit).findings[0].tone == "good" and not data_section(audit).tiles
