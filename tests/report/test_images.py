"""Sections of images: which they show in which order, and their sheet."""

import dataclasses

import numpy as np
import pytest
from support.reports import HOSTILE

from vitcifar.report.images import (
    attention_section,
    errors_section,
    highlight,
    nearest_section,
    overlay_weights,
    prediction_tile,
    regressions_section,
    sheet,
)


def ids(section):
    return [int(tile.id.removeprefix("<i>").removesuffix("</i>.png")) for tile in section.tiles if tile.id]


def test_errors_are_shown_the_most_confident_first(result):
    section = errors_section(result.dataset, result.probabilities)
    confidences = result.evaluation.confidences[ids(section)]
    errors = np.flatnonzero(~result.evaluation.correct)
    assert (np.diff(confidences) <= 0).all() and not result.evaluation.correct[ids(section)].any()
    assert confidences[0] == pytest.approx(result.evaluation.confidences[errors].max())
    assert section.text.startswith(f"{min(24, len(errors))} of {len(errors)} errors")


def test_at_most_24_errors_are_shown(result):
    probabilities = np.roll(np.eye(4)[result.dataset.labels], 1, axis=1)
    assert len(errors_section(result.dataset, probabilities).tiles) == 24


def test_regressions_are_the_images_that_only_the_other_version_classifies_correctly(result):
    probabilities = result.probabilities[:, ::-1]
    section = regressions_section(result.dataset, probabilities, dataclasses.replace(result.comparison, lost=(3, 9, 4)))
    assert sorted(ids(section)) == [3, 4, 9]
    assert (np.diff(probabilities[ids(section)].max(axis=1)) <= 0).all()


def test_a_tile_has_the_prediction_and_of_an_error_the_true_class(result):
    label = int(result.dataset.labels[5])
    wrong = np.full((80, 4), 0.1)
    wrong[5, (label + 1) % 4] = 0.7
    tile = prediction_tile(result.dataset, wrong, 5)
    assert (tile.title, tile.tone) == (f"{HOSTILE[(label + 1) % 4]} (70%)", "bad")
    assert tile.note == f"true: {HOSTILE[label]} (10%)" and np.array_equal(tile.image, result.dataset.images[5])
    correct = prediction_tile(result.dataset, np.roll(wrong, -1, axis=1), 5)
    assert (correct.title, correct.note, correct.tone) == (f"{HOSTILE[label]} (70%)", "", "good")


def test_each_image_stands_beside_its_attention(result):
    maps = {7: np.eye(4), 2: np.eye(4)}
    section = attention_section(result.dataset, result.probabilities, maps)
    assert ids(section) == [7, 2] and section.columns == 6
    assert np.array_equal(section.tiles[3].image, highlight(result.dataset.images[2], np.eye(4)))


def test_nearest_training_images_follow_each_error_and_are_green_where_they_have_its_class(result):
    nearest = result.analysis.nearest
    section = nearest_section(result.dataset, result.probabilities, nearest)
    rows = np.reshape(ids(section), (3, section.columns))
    assert section.columns == 4 and np.array_equal(rows[:, 1:], nearest.indices)
    labels, tones = result.dataset.labels, np.reshape([tile.tone for tile in section.tiles], rows.shape)
    assert np.array_equal(tones[:, 1:] == "good", labels[rows[:, 1:]] == labels[rows[:, [0]]])
    assert section.tiles[1].note == f"cosine {nearest.cosines[0, 0]:.2f}"


@pytest.mark.parametrize(("cosines", "crowded"), [((0.999, 0.998, 0.997), True), ((0.999, 0.9, 0.5), False)])
def test_neighbours_that_are_all_as_near_are_said_to_tell_nothing_apart(result, cosines, crowded):
    nearest = dataclasses.replace(result.analysis.nearest, cosines=np.tile(cosines, (3, 1)))
    section = nearest_section(result.dataset, result.probabilities, nearest)
    assert ("hardly tell images apart" in section.text) == crowded
    assert section.tiles[1].note == ("" if crowded else "cosine 1.00")


def test_highlight_is_dark_where_attention_is_low():
    image = highlight(np.full((16, 16, 3), 200, np.uint8), np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert image.shape == (128, 128, 3) and image[-1, -1, 0] > 190 > 70 > image[0, 0, 0]


def test_overlay_is_bright_where_the_map_is_high_and_has_the_size_of_the_image():
    weights = overlay_weights(np.array([[0.0, 0.0], [0.0, 1.0]]), 20, 30)
    assert weights.shape == (20, 30) and weights.min() == 0.0 and weights.max() == pytest.approx(1.0, abs=0.01)
    assert weights[-1, -1] > 0.9 and weights[0, 0] < 0.1
    assert (overlay_weights(np.full((2, 2), 0.25), 4, 4) == 0).all()


def test_the_sheet_of_a_section_holds_the_pixels_of_its_tiles(result):
    section = errors_section(result.dataset, result.probabilities)
    pixels = np.asarray(sheet(section))
    colour = section.tiles[0].image[0, 0]
    found = np.argwhere((pixels == colour).all(axis=2))
    assert len(found) >= (120 // 16) ** 2 and found[:, 1].min() < 120 + 20  # enlarged, in the first column
