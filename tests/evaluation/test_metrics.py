"""The metrics of an evaluation: numbers worked out by hand, edge cases, and the dictionary."""

import json

import numpy as np
import pytest
from mlflow.utils.validation import _validate_metric_name
from support.logits import some_logits

from vitcifar.errors import TrainingError
from vitcifar.evaluation.metrics import Evaluation, evaluate, metric_names, top_k_accuracy

NAMES = ("cat", "dog", "frog", "ship")


def test_metrics_worked_out_by_hand():
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1], [0.2, 0.4, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    labels = np.array([0, 2, 3, 1])  # ranks of the labels: 1, 2, 1, 3
    result = evaluate(np.log(probabilities), labels, NAMES)
    assert (result.accuracy, result.top2_accuracy, result.top3_accuracy) == (0.5, 0.75, 1.0)
    assert result.loss == pytest.approx(-np.log([0.7, 0.3, 0.4, 0.2]).mean())
    squares = [0.3**2 + 3 * 0.1**2, 0.2**2 + 0.4**2 + 0.7**2 + 0.1**2, 0.14 + 0.6**2, 0.1**2 + 0.8**2 + 0.3**2 + 0.4**2]
    assert result.brier == pytest.approx(np.mean(squares))
    assert (result.precision_macro, result.recall_macro, result.f1_macro) == pytest.approx((3 / 8, 0.5, 5 / 12))
    assert result.confusion.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert [score.support for score in result.classes] == [1, 1, 1, 1]


def test_the_first_of_equal_logits_ranks_highest_as_for_the_accuracy():
    logits, labels = np.zeros((4, 4)), np.arange(4)
    result = evaluate(logits, labels, NAMES)
    assert (result.accuracy, result.top2_accuracy, result.top3_accuracy) == (0.25, 0.5, 0.75)
    always_first = evaluate(logits, np.zeros(4, int), NAMES)
    assert always_first.accuracy == always_first.top2_accuracy == always_first.top3_accuracy == 1.0


@pytest.mark.parametrize("num_classes", [2, 3])
def test_top_k_of_at_least_all_classes_is_one(num_classes):
    logits, labels = some_logits(30, num_classes)
    assert top_k_accuracy(logits, labels, 3) == 1.0


def test_confused_pairs_are_counted_by_direction_and_the_most_frequent_comes_first():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    predictions = np.array([1, 1, 1, 0, 0, 1, 2, 2])
    result = evaluate(np.eye(4)[predictions], labels, NAMES)
    assert [(p.label, p.prediction, p.count, p.share) for p in result.confused] == [
        ("cat", "dog", 3, 0.75),
        ("ship", "frog", 1, 1.0),
        ("dog", "cat", 1, 0.5),
    ]


def test_a_class_without_images_is_excluded_from_the_macro_averages():
    result = evaluate(np.eye(4)[[0, 1, 1]], np.array([0, 1, 1]), NAMES)
    assert (result.precision_macro, result.recall_macro, result.f1_macro) == (1, 1, 1)
    assert result.classes[3].support == 0 and result.classes[3].recall_high == 1.0


def test_two_classes_have_every_metric():
    result = evaluate(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 1]), ("no", "yes"))
    assert result.top2_accuracy == result.top3_accuracy == 1.0


def test_temperature_changes_confidences_and_no_prediction():
    logits, labels = some_logits()
    plain, cooled = evaluate(logits, labels, NAMES), evaluate(logits, labels, NAMES, temperature=3.0)
    assert (plain.predictions == cooled.predictions).all()
    assert (plain.confidences > cooled.confidences).all()
    assert plain.loss != cooled.loss


def test_an_evaluation_is_restored_from_json():
    logits, labels = some_logits()
    result = evaluate(logits, labels, NAMES, fingerprint="f00")
    text = json.dumps(result.to_dict(), allow_nan=False)
    again = Evaluation.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.scalars() == result.scalars()
    assert (again.correct == result.correct).all() and again.classes == result.classes


def test_scalars_are_finite_floats_with_flat_names():
    logits, labels = some_logits()
    scalars = evaluate(logits, labels, NAMES).scalars()
    assert {"accuracy", "f1_macro", "loss", "ece"} < set(scalars)
    assert len(scalars) == 6, "few enough to compare runs by; a page shows a card for each"
    assert all(type(value) is float and np.isfinite(value) for value in scalars.values())


def test_metric_names_of_unusual_classes_are_valid_and_distinct():
    names = metric_names(["a/b", "a:b", "..", "ünder", "", "ok"])
    assert len(set(names)) == 6 and names[3] == "ünder" and names[5] == "ok"
    assert not any(set(name) & set("/:") or name in ("", ".", "..") for name in names)


def test_long_class_names_give_metric_names_that_mlflow_accepts():
    classes = ["x" * 245, "x" * 244 + "y", "a/b 2", "a/b", "a:b", "a#b%c?\n[d]"]
    names = metric_names(classes)
    assert names[:2] == ["x" * 200, "x" * 200 + " 1"] and len(set(names)) == 6
    for name in names:
        _validate_metric_name(f"test/precision/{name}")


def test_a_name_that_is_taken_by_another_class_is_not_given_twice():
    assert metric_names(["a_b 2", "a_b", "a:b"]) == ["a_b 2", "a_b", "a_b 2 2"]


def test_nan_and_infinite_logits_are_rejected_with_the_number_of_images():
    logits, labels = some_logits()
    logits[3, 1], logits[7, 0] = np.nan, np.inf
    with pytest.raises(TrainingError, match="2 of 300"):
        evaluate(logits, labels, NAMES)


def test_class_counts_are_integers_also_when_no_prediction_is_correct():
    evaluation = evaluate(np.eye(2)[[1, 0, 0]], np.array([0, 1, 1]), ("cat", "dog"))
    assert [(score.support, score.recall) for score in evaluation.classes] == [(1, 0.0), (2, 0.0)]
    assert all(type(score.support) is int for score in evaluation.classes)
