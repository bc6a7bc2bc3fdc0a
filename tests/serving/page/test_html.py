"""The HTML of the page."""

import dataclasses
import re

import pytest
from support.serving import make_manifest, make_model

from vitcifar.inference.session import Prediction, Timing
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import html


def make_prediction(*probabilities: float, **fields: float) -> Prediction:
    by_name = {f"class {index}": value for index, value in enumerate(probabilities)}
    timing = Timing(decode_ms=1, inference_ms=234.5, total_ms=1235.5)
    return Prediction(label="class 0", probabilities=by_name, release_id="toy", timing=timing, **fields)


def test_the_card_shows_five_classes_the_others_the_version_and_three_times(colours):
    pool = ModelPool(colours, "champion")
    card = html.prediction_card(make_prediction(0.6, 0.2, 0.1, 0.05, 0.02, 0.02, 0.01), pool.get(""), pool.state)
    first, others = card.split("<details")
    assert first.count("<li") == 5 and others.count("<li") == 2
    assert "2 others" in others and "3.0%" in others.split("</summary>")[0]
    assert "colours version 1" in card and "champion" in card
    assert "1.0 ms" in card and "234 ms" in card and "1,236 ms" in card
    six = html.prediction_card(make_prediction(0.6, 0.2, 0.1, 0.05, 0.04, 0.01), pool.get(""), pool.state)
    assert six.count("<li") == 6 and "others" not in six, "one more line holds one class as well"


def test_the_plot_shows_every_time_and_the_percentiles(colours):
    pool = ModelPool(colours, "champion")
    card = html.prediction_card(make_prediction(1.0), pool.get(""), pool.state, [*range(1, 101), 10_000.0])
    assert card.count("<rect") == 101 and "Last 101: p50 51.0 ms,<br>p95 96.0 ms" in card
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"', card)]
    assert max(heights) <= 24, "a slow prediction stays inside"


def test_the_status_shows_the_version_its_test_accuracy_and_chance(colours):
    pool = ModelPool(colours, "champion")
    shown = html.status(pool.state, 0)
    assert "colours version 1" in shown and "87.5% test accuracy (chance 33.3%)" in shown
    assert "version 1 is the default" in html.status(pool.state, 0, pool.get("2"))


def test_a_model_at_chance_does_not_look_healthy(colours, toy_onnx):
    state = ModelPool(colours, "champion").state
    evaluation = {"accuracy": 0.4, "accuracy_low": 0.3}
    model = make_model(toy_onnx, checks={"test": evaluation}, counts={"test": {"red": 4, "green": 3, "blue": 3}})
    shown = html.status(dataclasses.replace(state, current=model), 0)
    assert "40.0% test accuracy (no better than chance, 40.0%)" in shown and 'class="dot warn"' in shown
    assert 'class="dot"' in html.status(state, 0)
    assert html.chance_level(make_manifest()) == pytest.approx(1 / 3), "a release without counts"


def test_names_cannot_inject_html(colours):
    pool = ModelPool(colours, "champion")
    prediction = Prediction(label="<script>", probabilities={"<script>": 1.0}, release_id="")
    shown = (
        html.prediction_card(prediction, pool.get(""), pool.state)
        + html.error_card('"<script>')
        + html.heading("<script>", ["<script>"])
    )
    assert "<script>" not in shown and '""' not in shown.replace('alt=""', "")
    assert shown.count("&lt;script&gt;") == 9


def test_the_heading_counts_the_classes_and_lists_ten():
    assert "3 classes: a, b, c<" in html.heading("toy", "abc")
    assert "12 classes: a, b, c, d, e, f, g, h, i, j and 2 more<" in html.heading("toy", "abcdefghijkl")


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100.0%"), (0.9999, "> 99.9%"), (0.0001, "< 0.1%"), (0.0, "0.0%"), (0.968, "96.8%")]
)
def test_a_percentage_never_rounds_to_certainty(value, text):
    assert html.percent(value) == text


def test_a_doubtful_prediction_looks_weaker_and_says_why(colours, toy_onnx):
    state = ModelPool(colours, "champion").state

    def card(threshold: float | None, probability: float, **fields: float) -> str:
        prediction = make_prediction(probability, 1 - probability, **fields)
        return html.prediction_card(prediction, make_model(toy_onnx, threshold=threshold), state)

    for weak, sentence in (
        (card(0.9, 0.8), "Not confident: below this version&#x27;s threshold of 90.0%"),
        (card(None, 1.0), "Not confident: this version is never confident"),
        (card(0.9, 0.95, ood_score=1.2), "Unlike the training images"),
    ):
        assert sentence in weak and "prediction weak" in weak and "Perhaps" in weak
    for strong, sentence in (
        (card(0.9, 0.9, ood_score=0.9), "Confident: at least"),
        (card(0.0, 0.8), "This version has no threshold of confidence"),
    ):
        assert sentence in strong and "weak" not in strong and "Most likely" in strong
