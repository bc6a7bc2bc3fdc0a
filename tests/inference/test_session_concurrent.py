"""Predictions at the same time: one thread each, and the same values as alone on every core."""

import concurrent.futures
import threading

import numpy as np
import pytest
from support.toys import make_image, make_onnx

from vitcifar.data.image import read_image
from vitcifar.inference import session
from vitcifar.inference.session import OnnxClassifier


def test_predictions_at_the_same_time_use_one_thread_each_and_one_alone_all(toy_onnx, monkeypatch):
    classifier = OnnxClassifier(toy_onnx, num_threads=2, concurrent=True)
    alone, each = classifier._session, classifier._single
    used, infer = [], classifier._infer
    monkeypatch.setattr(classifier, "_infer", lambda *args: used.append(args[2]) or infer(*args))
    barrier = threading.Barrier(2)

    def read(content: bytes, name: str) -> np.ndarray:
        barrier.wait(10)  # both have begun
        return read_image(content, name)

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(classifier.predict, make_image("red"), read=read) for _ in range(2)]
        assert [job.result().label for job in jobs] == ["red", "red"]
    assert each in used and alone is not each
    used.clear()
    classifier.predict(make_image("red"))
    classifier.predict_images([read_image(make_image("red"))])
    assert used == [alone, alone]


@pytest.mark.parametrize(("every_core", "one_thread", "chosen"), [(2, 1, 1), (1, 2, 0), (90, 60, 0)])
def test_a_small_network_that_is_faster_with_one_thread_uses_one_when_alone(
    toy_onnx, monkeypatch, every_core, one_thread, chosen
):
    classifier = OnnxClassifier(toy_onnx, num_threads=2, concurrent=True)
    sessions = [classifier._session, classifier._single]
    monkeypatch.setattr(classifier, "_milliseconds", dict(zip(sessions, (every_core, one_thread), strict=True)).get)
    classifier.warm()
    used, infer = [], classifier._infer
    monkeypatch.setattr(classifier, "_infer", lambda *args: used.append(args[2]) or infer(*args))
    assert classifier.predict(make_image("red")).label == "red" and used == [sessions[chosen]]


def test_both_sessions_give_the_same_bits(registry, published):
    classifier = OnnxClassifier(registry.pull(1).onnx_path, num_threads=2, concurrent=True)
    for image in published.splits.test.images:
        alone, each = (
            classifier._infer(["logits"], image[None], one)[0] for one in (classifier._session, classifier._single)
        )
        np.testing.assert_array_equal(alone, each)


def test_the_weights_of_a_large_file_are_in_memory_once(tmp_path, monkeypatch):
    path = make_onnx(tmp_path / "toy.onnx")
    monkeypatch.setattr(session, "MAX_TWICE", path.stat().st_size - 1)
    large = OnnxClassifier(path, num_threads=2, concurrent=True)
    assert large._single is large._session
    large.warm()
    assert large.predict(make_image("blue")).label == "blue"
