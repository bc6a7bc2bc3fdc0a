"""The classes in a report, few and many."""

import numpy as np
import pytest
from support.reports import HOSTILE, many_classes

from vitcifar.evaluation.metrics import evaluate
from vitcifar.report.classes import MAX_ROWS, class_section, confusion_map, confusion_raster
from vitcifar.report.style import GREEN, RED


def test_a_few_classes_have_their_counts_their_confusions_and_their_scores(result):
    section = class_section(result.evaluation)
    (heat,), (pairs, scores) = section.heat_maps, section.tables
    assert (heat.rows, heat.columns) == (HOSTILE, HOSTILE) and section.raster is None
    for (row, column), count in np.ndenumerate(result.evaluation.confusion):
        cell = heat.cells[row][column]
        assert (cell.text, cell.tone) == (str(count), "good" if row == column else "bad") if count else cell is None
    assert pairs.header == ["True class", "Prediction", "Images", "Share"]
    assert pairs.rows[0][2] == str(result.evaluation.confused[0].count)
    assert scores.header == ["Class", "Images", "Recall", "Recall, 95% interval", "Precision", "F1"]
    assert [row[0] for row in scores.rows] == list(HOSTILE)
    assert [row[2] for row in scores.rows] == [score.recall for score in result.evaluation.classes]


def test_a_share_of_nothing_is_undefined():
    labels = np.array([0, 0, 1])
    evaluation = evaluate(np.eye(4)[[0, 0, 2]], labels, ("a", "never predicted", "not in the images", "neither"))
    rows = {row[0]: row[1:] for row in class_section(evaluation).tables[1].rows}
    assert rows["a"][1:] == [1.0, rows["a"][2], 1.0, "1.000"]
    assert rows["never predicted"][1:] == [0.0, "0.0% to 79.3%", "undefined", "0.000"]
    assert rows["not in the images"] == ["0", "undefined", "undefined", 0.0, "0.000"]
    assert rows["neither"] == ["0", "undefined", "undefined", "undefined", "undefined"]


def test_thirty_classes_are_cells_without_counts_and_every_class_has_its_row():
    evaluation, _, _ = many_classes(30)
    heat = confusion_map(evaluation)
    cells = [cell for row in heat.cells for cell in row if cell]
    assert len(cells) == np.count_nonzero(evaluation.confusion) and not any(cell.text for cell in cells)
    names, count = evaluation.class_names, evaluation.confusion[0, 0]
    assert heat.cells[0][0].hint == f"{names[0]} predicted as {names[0]}: {count} of 5" and heat.upright
    assert len(class_section(evaluation).tables[1].rows) == 30


@pytest.mark.parametrize("num_classes", [41, 1000])
def test_many_classes_are_pixels_and_the_weakest_have_rows(num_classes):
    evaluation, _, _ = many_classes(num_classes, per_class=2)
    section = class_section(evaluation)
    assert not section.heat_maps and section.raster.alt.startswith(f"Confusion matrix of {num_classes:,} classes")
    scores = section.tables[1]
    recalls = [score.recall for score in evaluation.classes]
    assert [row[2] for row in scores.rows] == sorted(recalls)[:MAX_ROWS]
    assert scores.note.startswith(f"The {MAX_ROWS} of {num_classes:,} classes with the lowest recall")


def test_a_pixel_is_the_largest_share_of_its_block_green_on_the_diagonal_and_red_elsewhere():
    labels = np.arange(1000).repeat(2)
    predictions = labels.copy()
    predictions[0], predictions[2000 - 2] = 999, 998  # half of the first class, and of the last within its own block
    raster = confusion_raster(evaluate(np.eye(1000)[predictions], labels, [str(label) for label in range(1000)]))
    assert raster.pixels.shape == (250, 250, 4) and "4 × 4 classes" in raster.note
    colours = {"#" + bytes(pixel[:3]).hex() for pixel in raster.pixels[raster.pixels[..., 3] > 0]}
    assert colours == {GREEN, RED}
    assert "#" + bytes(raster.pixels[0, -1, :3]).hex() == RED and raster.pixels[0, -1, 3] == round(
        255 * (0.15 + 0.85 * 0.5**0.5)
    )
    assert "#" + bytes(raster.pixels[-1, -1, :3]).hex() == GREEN and raster.pixels[-1, -1, 3] == 255
    assert not raster.pixels[0, 1].any()
