"""The times of the last predictions."""

import dataclasses

from support.serving import make_model

from vitcifar.inference.session import Prediction, Timing
from vitcifar.serving.page.recent import MAX_RECENT, RecentTimes


def test_the_last_hundred_times_of_each_version_are_kept(toy_onnx):
    times, model = RecentTimes(), make_model(toy_onnx)
    for number in range(MAX_RECENT + 5):
        timing = Timing(decode_ms=0, inference_ms=0, total_ms=number)
        kept = times.add(model, Prediction(label="red", probabilities={"red": 1.0}, release_id="", timing=timing))
    assert kept == tuple(range(5, MAX_RECENT + 5))
    other = dataclasses.replace(model, version=8)
    assert times.add(other, Prediction(label="red", probabilities={"red": 1.0}, release_id="")) == ()
