"""Sections: which there are, and the numbers that they say."""

import dataclasses

import numpy as np
import pytest
from support.reports import HOSTILE, NUM

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.analysis import Analysis
from vitcifar.evaluation.calibration import apply_threshold, softmax
from vitcifar.evaluation.duplicates import Duplicates
from vitcifar.evaluation.metrics import evaluate
from vitcifar.report import sections
from vitcifar.report.log import report_sections


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
        "Data",
    ]


def test_report_has_no_section_for_parts_that_do_not_exist(result):
    titles = [part.title for part in report_sections(result.evaluation, result.dataset, result.probabilities)]
    assert titles == ["Summary", "Classes", "Most confident errors", "Calibration and selective prediction"]


def test_summary_has_the_accuracy_the_sentences_and_one_number_of_each_part_of_the_analysis(result):
    evaluation, analysis = result.evaluation, result.analysis
    section = sections.summary(evaluation, analysis)
    assert section.headline is evaluation and section.chance == np.bincount(result.dataset.labels).max() / NUM
    assert section.findings[0].text.startswith(f"{evaluation.correct.sum()} of {NUM} images are correct")
    found = numbers(section)
    assert found["Calibration error"][0] == f"{evaluation.ece:.3f}"
    assert found["Top-2 accuracy"][0] == f"{evaluation.top2_accuracy:.1%}"
    assert found["Precision"][0] == f"{analysis.threshold.precision:.1%}"
    assert found["Corruption accuracy"][0] == f"{analysis.robustness.mean_accuracy:.1%}"
    assert found["OOD AUROC"][0] == f"{analysis.ood[0].auroc:.3f}"
    assert len(sections.summary(evaluation, Analysis()).numbers) == len(found) - 3


def test_precision_without_a_confident_prediction_is_undefined(result):
    nobody = apply_threshold(result.evaluation.confidences, result.evaluation.correct, None, 0.9)
    section = sections.summary(result.evaluation, Analysis(threshold=nobody))
    assert numbers(section)["Precision"] == ("undefined", "of confident predictions, 0% of all")


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


def test_confidence_has_the_threshold_with_its_coverage_and_precision(result):
    threshold = result.analysis.threshold
    found = numbers(sections.confidence_section(result.evaluation, threshold))
    assert found["Confidence threshold"] == (f"{threshold.confidence:.3f}", "chosen on validation for 80% precision")
    assert found["Coverage"] == (f"{threshold.coverage:.1%}", f"{threshold.num_answered} images")
    assert found["Temperature"] == ("1.00", "no scaling")
    assert "Coverage" not in numbers(sections.confidence_section(result.evaluation, None))


def test_slices_are_rows_with_their_accuracy_and_interval(result):
    (table,) = sections.slice_section(result.analysis.slices).tables
    first = result.analysis.slices[0]
    assert table.rows[0][0] == f"{first.property}: {first.name}" and table.rows[0][3] == first.accuracy
    assert table.rows[0][4] == f"{first.accuracy_low:.1%} to {first.accuracy_high:.1%}"


def test_robustness_has_intervals_and_the_same_colours_whatever_the_clean_accuracy(result):
    robustness = dataclasses.replace(
        result.analysis.robustness, accuracy=np.array([[0.5, 0.25], [0.75, 0.65]]), clean_accuracy=0.9, num_images=20
    )
    section = sections.robustness_section(robustness)
    assert numbers(section)["Clean accuracy"] == ("90.0%", "95% interval 69.9% to 97.2%")
    (heat,) = section.heat_maps
    assert (heat.rows, heat.columns) == (["contrast", "fog"], ["1", "5", "mean"])
    assert [[cell.text for cell in row] for row in heat.cells] == [["75%", "65%", "70%"], ["50%", "25%", "38%"]]
    assert [cell.strength for cell in heat.cells[1]] == [0.5, 0.75, 0.625]
    other = sections.robustness_map(dataclasses.replace(robustness, clean_accuracy=0.3))
    assert other.cells == heat.cells


def test_corruptions_on_too_few_images_are_said_to_be_so(result):
    few = dataclasses.replace(
        result.analysis.robustness, accuracy=np.full((2, 2), 0.7), clean_accuracy=0.65, num_images=20
    )
    assert "20 images are too few to tell the two apart" in sections.robustness_section(few).text
    assert "too few" not in sections.robustness_section(dataclasses.replace(few, num_images=2000)).text


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
    assert [table.title for table in parts[1].tables] == ["Scores by class"]  # no confused classes
    assert parts[2].text == "No image is misclassified." and not parts[2].tiles
