"""What is said without labels: the estimate and its band hold, the test of drift keeps its level and finds drifts."""

import os
from pathlib import Path

import numpy as np
import pytest

from vitcifar.data.image import read_image
from vitcifar.data.sources import open_source
from vitcifar.evaluation.corruptions import CORRUPTIONS, corrupt
from vitcifar.evaluation.monitoring import calibration_error, estimate_accuracy, two_sample_test

LEVEL = 0.05
SAMPLE = Path(os.environ.get("VITCIFAR_SAMPLE", "none"))


def test_the_estimate_is_the_mean_confidence_with_the_band_of_a_poisson_binomial():
    estimated = estimate_accuracy(np.array([1.0, 1.0, 0.5, 0.5]))
    half = 1.959964 * np.sqrt(2 * 0.25) / 4
    assert estimated.accuracy == 0.75
    assert (estimated.low, estimated.high) == pytest.approx((0.75 - half, 1.0))
    wider = estimate_accuracy(np.full(100, 0.8), calibration_error=0.03)
    assert wider.high - wider.accuracy == pytest.approx(1.959964 * np.sqrt(0.8 * 0.2 / 100 + 0.03**2))


def test_the_band_holds_the_accuracy_in_95_percent_of_the_windows_of_calibrated_predictions():
    rng, held = np.random.default_rng(0), 0
    for _ in range(2000):
        confidences = rng.beta(6, 1, 200)
        accuracy = (rng.random(200) < confidences).mean()
        estimated = estimate_accuracy(confidences)
        held += estimated.low <= accuracy <= estimated.high
    assert 0.93 <= held / 2000 <= 0.97


def test_an_overconfident_version_has_a_band_that_reaches_its_accuracy():
    confidences, correct = np.full(400, 0.99), np.arange(400) < 360
    error = calibration_error(confidences, correct)
    assert error == pytest.approx(0.09)
    assert estimate_accuracy(confidences, calibration_error=error).low < 0.9
    assert calibration_error(np.full(4, 0.75), np.array([1, 1, 1, 0])) == pytest.approx(np.sqrt(0.1875 / 4))


def clusters(count: int, rng: np.random.Generator) -> np.ndarray:
    """Embeddings of three classes, correlated and with heavy tails."""
    centres = np.eye(3, 12)[rng.integers(3, size=count)] * 4
    return centres + rng.standard_t(3, (count, 12)) @ np.random.default_rng(1).normal(size=(12, 12)) / 4


def test_without_a_drift_it_alarms_in_5_percent_of_the_windows():
    """4,000 windows: the share has a standard deviation of 0.34%, so that no seed had to be chosen."""
    rng = np.random.default_rng(12345)
    p_values = np.array(
        [
            two_sample_test(
                clusters(30, rng), clusters(20, rng), num_permutations=99, seed=int(rng.integers(2**31))
            ).p_value
            for _ in range(4000)
        ]
    )
    assert 0.04 <= (p_values <= LEVEL).mean() <= 0.06
    assert 0.48 < p_values.mean() < 0.53, "uniform on 0.01, 0.02, ... 1"


def test_a_shift_is_found_and_the_same_images_are_none():
    rng = np.random.default_rng(0)
    reference = clusters(100, rng)
    moved = two_sample_test(reference, clusters(60, rng) + 1.0)
    assert moved.p_value == 1 / 500 and moved.mmd2 > 0
    assert two_sample_test(reference, reference).p_value == 1
    assert two_sample_test(np.zeros((50, 3)), np.zeros((60, 3))).p_value == 1, "a network that sees no difference"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="there are no images of CIFAR-10 in VITCIFAR_SAMPLE")
def test_on_real_images_it_keeps_its_level_and_finds_corruptions_and_other_images(published, tmp_path):
    """Windows of 200 against 500 reference embeddings of digits, in embeddings of a released ViT."""
    from vitcifar.inference.session import OnnxClassifier
    from vitcifar.release.export import export_onnx

    network = published.networks[1]
    export_onnx(network, tmp_path / "a.onnx", class_names=network.class_names, release_id="a")
    classifier, source = OnnxClassifier(tmp_path / "a.onnx"), open_source("digits", tmp_path)
    images = list(source.read("train", np.arange(len(source.ids("train")))).images)

    def embed(some):
        return classifier.logits_and_embeddings(some)[1].astype(np.float16)

    digits, rng, alarms = embed(images), np.random.default_rng(0), 0
    for seed in range(500):
        order = rng.permutation(len(digits))[:700]
        alarms += two_sample_test(digits[order[:500]], digits[order[500:]], seed=seed).p_value <= LEVEL
    assert 0.03 <= alarms / 500 <= 0.07, alarms
    others = {"photos": embed([read_image(path) for path in sorted(SAMPLE.glob("train/*/*.png"))[::4]])}
    for name in sorted(CORRUPTIONS):
        others[name] = embed([corrupt(image, name, 3, seed=i) for i, image in enumerate(images[:400])])
    share = dict.fromkeys(others, 0.0)
    for name, embeddings in others.items():
        for seed in range(40):
            reference = digits[400 + rng.permutation(len(digits) - 400)[:500]]
            window = embeddings[rng.permutation(len(embeddings))[:200]]
            share[name] += (two_sample_test(reference, window, num_permutations=199, seed=seed).p_value <= LEVEL) / 40
    print(f"level {alarms / 500}, power {share}")
    assert np.mean(list(share.values())) > 0.95, share
    assert min(share.values()) > 0.7, share  # shot noise is hardly visible on 8 x 8 pixels
