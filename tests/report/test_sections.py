"""Sections: which there are, the numbers that they say, and which images they show in which order."""

import dataclasses

import numpy as np
import pytest
from support.reports import HOSTILE, NUM

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.analysis import Analysis
from vitcifar.evaluation.calibration import softmax
from vitcifar.evaluation.duplicates import Duplicates
from vitcifar.evaluation.metrics import evaluate
from vitcifar.report import sections
from vitcifar.report.log import report_sections
from vitcifar.report.sections import (
    attention_section,
    errors_section,
    highlight,
    nearest_section,
    overlay_weights,
    prediction_tile,
    regressions_section,
    sheet,
)


def numbers(section):
    return {number.name: (number.value, number.note) for number in section.numbers}


def test_report_has_a_section_for_each_part_that_exists(result):
    parts = report_sections(result.evaluation, result.dataset, result.probabilities, result.analysis, result.comparison)
    assert [part.title for part in parts] == [
        "Summary",
        "Comparison",
        "Regressions",
        "Classes",
        "Most confident errors",
        "Attention rollout",
        "Nearest training images",
        "Calibration and selective prediction",
        "Slices",
        "Corruption robustness",
        "Out-of-distribution detection",
        "Near-duplicates",
    ]


def test_report_has_no_section_for_parts_that_do_not_exist(result):
    titles = [part.title for part in report_sections(result.evaluation, result.dataset, result.probabilities)]
    assert titles == ["Summary", "Classes", "Most confident errors", "Calibration and selective prediction"]


def test_summary_has_every_metric_and_one_number_of_each_part_of_the_analysis(result):
    evaluation, analysis = result.evaluation, result.analysis
    section = sections.summary(evaluation, analysis)
    assert section.headline is evaluation
    found = numbers(section)
    assert found["Calibration error"][0] == f"{evaluation.ece:.3f}"
    assert found["Top-2 accuracy"][0] == f"{evaluation.top2_accuracy:.1%}"
    assert found["Temperature"] == ("1.00", "no scaling")
    assert found["Precision at threshold"][0] == f"{analysis.threshold.precision:.1%}"
    assert found["Weakest slice"][0] == f"{min(row.accuracy for row in analysis.slices):.1%}"
    assert found["Corruption accuracy"][0] == f"{analysis.robustness.mean_accuracy:.1%}"
    assert found["OOD AUROC"][0] == f"{analysis.ood[0].auroc:.3f}"
    assert found["Near-duplicates"] == ("2", "between splits; 2 with identical pixels")
    assert len(sections.summary(evaluation, Analysis()).numbers) == len(found) - 5


def test_accuracy_is_written_with_its_interval_and_the_number_of_images(result):
    evaluation = dataclasses.replace(result.evaluation, accuracy=0.968, accuracy_low=0.9381, accuracy_high=0.98369)
    assert evaluation.accuracy_text() == f"0.9680 (95% interval 0.9381 to 0.9837, {NUM} images)"


@pytest.mark.parametrize(("outcome", "tone"), [("better", "good"), ("worse", "bad"), ("inconclusive", "plain")])
def test_comparison_says_its_outcome(result, outcome, tone):
    comparison = dataclasses.replace(result.comparison, outcome=outcome)
    section = sections.comparison_section(comparison)
    assert section.verdict.startswith(outcome.capitalize() + ": ") and section.tone == tone
    assert numbers(section)["Only version 5 (champion) correct"] == (str(len(comparison.lost)), "images")
    assert numbers(section)["Not worse"] == ("not shown", "margin 2.0 points")
    without = sections.comparison_section(dataclasses.replace(comparison, margin=0.0))
    assert "Not worse" not in numbers(without)


def test_classes_have_their_scores_and_their_confusions(result):
    scores, pairs = sections.class_section(result.evaluation).tables
    assert scores.header == ["Class", "Images", "Precision", "Recall", "Recall, 95% interval", "F1"]
    assert [row[0] for row in scores.rows] == list(HOSTILE)
    assert [row[3] for row in scores.rows] == [score.recall for score in result.evaluation.classes]
    assert pairs.header == ["True class", "Prediction", "Images", "Share of the class"]
    assert pairs.rows[0][2] == str(result.evaluation.confused[0].count)


def test_confidence_has_the_threshold_with_its_coverage_and_precision(result):
    threshold = result.analysis.threshold
    found = numbers(sections.confidence_section(result.evaluation, threshold))
    assert found["Confidence threshold"] == (f"{threshold.confidence:.3f}", "chosen on validation for 80% precision")
    assert found["Coverage"] == (f"{threshold.coverage:.1%}", f"{threshold.num_answered} images")
    assert not sections.confidence_section(result.evaluation, None).numbers


def test_near_duplicates_are_listed_by_their_ids(result):
    section = sections.duplicate_section(result.analysis.duplicates)
    assert section.text == (
        "2 pairs between splits, 2 with identical pixels, connect 2 of train, 2 of test to 2 clusters, each shown by "
        "its most similar pair."
    )
    (table,) = section.tables
    assert table.rows[0] == ["train", "<i>0</i>.png", "test", "<i>0</i>.png", "1.0000", "yes", "yes", "2"]
    found = result.analysis.duplicates
    many = sections.duplicate_section(dataclasses.replace(found, num_clusters=80, listed=found.listed * 30))
    assert len(many.tables[0].rows) == 60 and many.text.endswith("The first 60 are shown.")
    assert sections.duplicate_section(Duplicates()).text == "No image has a near-duplicate in another split."


def test_report_of_perfect_predictions_says_that_there_are_no_errors():
    labels = np.arange(12) % 4
    images = np.zeros((12, 8, 8, 3), np.uint8)
    dataset = ImageDataset(images=images, labels=labels, class_names=HOSTILE, ids=("x",) * 12)
    logits = 50 * np.eye(4)[labels]
    parts = report_sections(evaluate(logits, labels, HOSTILE), dataset, softmax(logits))
    assert len(parts[1].tables) == 1  # no confused classes
    assert parts[2].text == "No image is misclassified." and not parts[2].tiles


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
    assert section.tiles[1].note == f"cosine {nearest.cosines[0, 0]:.3f}"


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
