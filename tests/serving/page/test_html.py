"""The HTML of the page."""

import pytest
from support.serving import make_model

from vitcifar.inference.session import Prediction, Timing
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import html


def make_prediction(*probabilities: float) -> Prediction:
    by_name = {f"class {index}": value for index, value in enumerate(probabilities)}
    timing = Timing(decode_ms=1, inference_ms=234.5, total_ms=1235.5)
    return Prediction(label="class 0", probabilities=by_name, release_id="toy", timing=timing)


def test_the_card_shows_five_classes_the_version_and_three_times(colours):
    pool = ModelPool(colours, "champion")
    card = html.prediction_card(make_prediction(0.6, 0.2, 0.1, 0.05, 0.04, 0.01), pool.get(""), pool.state)
    assert card.count("<li>") == 5 and "class 5" not in card
    assert "colours version 1" in card and "champion" in card
    assert "1.0 ms" in card and "234 ms" in card and "1,236 ms" in card


def test_the_status_shows_the_version_and_its_test_accuracy(colours):
    pool = ModelPool(colours, "champion")
    shown = html.status(pool.state, 0)
    assert "colours version 1" in shown and "87.5% test accuracy" in shown
    assert "version 1 is the default" in html.status(pool.state, 0, pool.get("2"))


def test_names_cannot_inject_html(colours):
    pool = ModelPool(colours, "champion")
    prediction = Prediction(label="<script>", probabilities={"<script>": 1.0}, release_id="")
    shown = (
        html.prediction_card(prediction, pool.get(""), pool.state)
        + html.error_card("<script>")
        + html.heading("<script>", ["<script>"])
    )
    assert "<script>" not in shown and shown.count("&lt;script&gt;") == 5


def test_the_heading_counts_the_classes_and_lists_ten():
    assert "3 classes: a, b, c<" in html.heading("toy", "abc")
    assert "12 classes: a, b, c, d, e, f, g, h, i, j and 2 more<" in html.heading("toy", "abcdefghijkl")


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100.0%"), (0.9999, "> 99.9%"), (0.0001, "< 0.1%"), (0.0, "0.0%"), (0.968, "96.8%")]
)
def test_a_percentage_never_rounds_to_certainty(value, text):
    assert html.percent(value) == text


def test_the_card_states_whether_the_prediction_reaches_the_threshold(colours, toy_onnx):
    state = ModelPool(colours, "champion").state
    model = make_model(toy_onnx, threshold=0.9)
    assert "Not confident: below this version's threshold of 90.0%" in html.prediction_card(
        make_prediction(0.8, 0.2), model, state
    )
    assert "Confident: at least" in html.prediction_card(make_prediction(0.9, 0.1), model, state)
    assert "onfident" not in html.prediction_card(make_prediction(0.8, 0.2), make_model(toy_onnx), state)
    never = make_model(toy_onnx, threshold=None)
    assert "Not confident: this version is never confident" in html.prediction_card(
        make_prediction(1.0, 0.0), never, state
    )
