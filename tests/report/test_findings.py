"""The sentences of a summary say what is in the numbers."""

import dataclasses

import numpy as np
import pytest
from support.reports import many_classes

from vitcifar.evaluation.analysis import Analysis
from vitcifar.evaluation.calibration import apply_threshold
from vitcifar.evaluation.duplicates import Duplicates
from vitcifar.evaluation.metrics import evaluate
from vitcifar.report.findings import findings, robustness_finding, share, threshold_finding

NAMES = ("airplane", "bird", "cat", "dog")


def scored(labels, predictions, names=NAMES, confidence=9.0):
    return evaluate(confidence * np.eye(len(names))[predictions], np.array(labels), names)


def texts(evaluation, analysis=None, tone=None):
    found = findings(evaluation, analysis or Analysis())
    return [finding.text for finding in found if tone in (None, finding.tone)]


def test_a_weak_model_is_called_one():
    labels = np.arange(100) % 4
    predictions = np.where(labels == 3, 3, np.where(labels == 2, 3, 3))
    predictions[:8] = 0
    said = texts(scored(labels, predictions), tone="bad")
    assert said[:3] == [
        "25 of 100 images are correct; chance is 25%. The interval does not exclude it.",
        "Predicts dog for 92% of the images, although it is the class of 25%.",
        "Never predicts bird, cat.",
    ]
    assert said[3] == "Overconfident: mean confidence 100%, accuracy 25%."


def test_the_most_confused_pairs_have_their_counts():
    labels = np.repeat(np.arange(4), 25)
    predictions = labels.copy()
    predictions[50:59] = 3  # nine cats
    predictions[0:2] = 1
    predictions[99] = 0
    said = texts(scored(labels, predictions))
    assert "Most confused: cat as dog, 9 of 25; airplane as bird, 2 of 25." in said
    assert "Lowest recall: cat, 64% (16 of 25 images)." in said
    assert not any("Never" in text or "does not exclude" in text for text in said)


def test_a_pair_that_is_confused_once_is_not_called_the_most_confused():
    labels = np.arange(40) % 4
    predictions = labels.copy()
    predictions[0] = 1
    assert "No class is taken for the same other class more than once." in texts(scored(labels, predictions))
    assert not any("confused" in text or "Lowest" in text for text in texts(scored(labels, labels)))


def test_chance_of_unequal_classes_is_that_of_the_most_frequent_one():
    labels = np.array([0] * 6 + [1, 2, 3, 3])
    assert texts(scored(labels, labels))[0] == (
        "10 of 10 images are correct; always predicting airplane, the most frequent class, gives 60%."
    )


def test_many_classes_are_listed_in_part():
    labels = np.arange(1000)
    evaluation = scored(labels, np.zeros(1000, int), [f"c{label}" for label in labels])
    assert "Never predicts c1, c2, c3, c4, c5, c6 and 993 more." in texts(evaluation)
    assert len(" ".join(texts(many_classes(1000, per_class=1)[0]))) < 1000


def test_a_name_from_right_to_left_does_not_turn_the_sentence():
    said = texts(scored([0, 0, 1, 1], [1, 1, 1, 1], ("קטה", "dog")))
    assert "Never predicts \N{FIRST STRONG ISOLATE}קטה\N{POP DIRECTIONAL ISOLATE}." in said


@pytest.mark.parametrize(
    ("confidence", "said"),
    [
        (None, "Never confident: no threshold reached the precision on validation; the target is 95%."),
        (0.99, "No prediction reaches the confidence threshold 0.990; the target is 95%."),
        (0.5, "Confident on 50% of the images; 50% of these are correct, the target is 95%."),
    ],
)
def test_the_threshold_is_one_sentence(confidence, said):
    confidences, correct = np.tile([0.9, 0.8, 0.4, 0.3], 10), np.tile([True, False, True, True], 10)
    finding = threshold_finding(apply_threshold(confidences, correct, confidence, 0.95))
    assert (finding.text, finding.tone) == (said, "bad")


@pytest.mark.parametrize(("num_correct", "tone"), [(20, "good"), (18, "plain"), (10, "bad")])
def test_precision_below_the_target_is_not_called_good_even_if_chance_explains_it(num_correct, tone):
    correct = np.arange(20) < num_correct
    finding = threshold_finding(apply_threshold(np.full(20, 0.9), correct, 0.5, 0.95))
    assert (finding.text.count(f"{5 * num_correct}% of these are correct"), finding.tone) == (1, tone)


def test_only_a_slice_that_is_significantly_worse_is_mentioned(result):
    first, *_ = result.analysis.slices
    rows = tuple(
        dataclasses.replace(first, accuracy=0.4, p_value=p, name=name) for p, name in ((0.01, "x"), (0.2, "y"))
    )
    said = [text for text in texts(result.evaluation, Analysis(slices=rows)) if "Significantly" in text]
    assert said == [f"Significantly worse where {first.property} is x: 40% of {first.count} images, 78.8% of all."]


def test_near_duplicates_are_a_warning(result):
    assert any("2 of train, 2 of test" in text for text in texts(result.evaluation, result.analysis, tone="bad"))
    found = result.analysis.duplicates
    untested = Analysis(duplicates=dataclasses.replace(found, num_images={"train": 2, "validation": 1, "test": 0}))
    said = "Near-duplicates between splits (2 of train, 1 of validation): no test image is among them."
    assert said in texts(result.evaluation, untested, tone="plain")
    none = Analysis(duplicates=Duplicates())
    assert "No image has a near-duplicate in another split." in texts(result.evaluation, none, tone="good")


def test_corruptions_that_harm_have_the_worst_one_and_too_few_images_are_said(result):
    grid = np.array([[0.5, 0.4], [0.3, 0.2]])
    robustness = dataclasses.replace(
        result.analysis.robustness, accuracy=grid, clean_accuracy=0.9, num_images=100, names=("fog", "shot_noise")
    )
    assert robustness_finding(robustness).text == (
        "Corrupted images: 35%, clean 90%, on the same 100 images; the most harmful is shot noise, 25%."
    )
    few = robustness_finding(dataclasses.replace(robustness, clean_accuracy=0.4, num_images=20))
    assert few.text == (
        "Corrupted images: 35%, clean 40%, on the same 20 images. 20 images are too few to tell the two apart: "
        "type a higher --corruption-images."
    )


def test_a_share_has_no_decimals_that_are_zero():
    assert [share(value) for value in (0.1, 0.968, 1.0, 0.001)] == ["10%", "96.8%", "100%", "0.1%"]


def test_images_and_labels_that_stand_out_are_counted_by_kind_and_nothing_is_said_of_none(result):
    audit = result.analysis.audit
    kinds = audit.counts()
    assert kinds["identical"] == 4 and "label error" in kinds
    (said,) = [text for text in texts(result.evaluation, result.analysis) if "see Data" in text]
    assert all(f"{kind} {count}" in said for kind, count in kinds.items())
    clean = dataclasses.replace(result.analysis, audit=dataclasses.replace(audit, issues=()))
    assert not [text for text in texts(result.evaluation, clean) if "see Data" in text]
