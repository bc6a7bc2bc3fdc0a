"""Out-of-distribution detection: the scores, how well they separate, and where the images come from."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu
from sklearn import metrics

from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError, DataError
from vitcifar.evaluation import ood as o
from vitcifar.evaluation.ood import check_ood, ood_name, ood_source, read_ood_images
from vitcifar.presets import resolve

CONFIG = resolve("digits")


def test_ood_scores_worked_out_by_hand():
    scores = o.ood_scores(np.log([[1.0, 3.0], [4.0, 4.0]]))
    assert scores["max_softmax"] == pytest.approx([0.75, 0.5])
    assert scores["max_logit"] == pytest.approx(np.log([3, 4]))
    assert scores["energy"] == pytest.approx(np.log([4, 8]))
    assert scores["entropy"] == pytest.approx([0.75 * np.log(0.75) + 0.25 * np.log(0.25), np.log(0.5)])
    assert scores["margin"] == pytest.approx([0.5, 0.0])


def test_energy_divides_by_the_temperature_as_in_its_paper():
    logits = np.array([[1.0, 2.0, 4.0]])
    expected = 2.0 * np.log(np.exp(logits / 2.0).sum())
    assert o.ood_scores(logits, temperature=2.0)["energy"] == pytest.approx([expected])


def test_large_logits_have_finite_scores():
    scores = o.ood_scores(np.array([[1e4, 0.0, -1e4]]))
    assert all(np.isfinite(values).all() for values in scores.values())
    assert scores["entropy"][0] == 0.0


def test_auroc_is_the_probability_that_an_in_distribution_image_scores_higher():
    random = np.random.default_rng(0)
    inside, outside = random.normal(1, 1, 120).round(1), random.normal(0, 1, 80).round(1)
    score = o.evaluate_score("any", inside, outside)
    u = mannwhitneyu(inside, outside).statistic
    assert score.auroc == pytest.approx(u / (120 * 80))
    is_ood = np.r_[np.zeros(120), np.ones(80)]
    precision = metrics.average_precision_score(is_ood, -np.r_[inside, outside])
    assert score.average_precision == pytest.approx(precision)
    assert (inside >= score.threshold).mean() >= 0.95 > (inside > score.threshold).mean()
    assert score.false_positives == pytest.approx((outside >= score.threshold).mean())


def test_auroc_interval_has_the_width_of_the_simulated_distribution():
    # Hanley & McNeil 1982 assume exponential scores.
    random = np.random.default_rng(0)
    inside, outside = random.exponential(4.0, (4000, 30)), random.exponential(1.0, (4000, 60))
    areas = (inside[:, :, None] > outside[:, None, :]).mean(axis=(1, 2))
    low, high = o.auroc_interval(0.8, 30, 60)  # 4 / (4 + 1)
    assert (high - low) / 2 / 1.959964 == pytest.approx(areas.std(), rel=0.05)
    assert o.auroc_interval(1.0, 10, 10) == (1.0, 1.0)


def test_flat_logits_are_detected_and_logits_of_the_same_distribution_are_not():
    random = np.random.default_rng(0)
    confident = random.normal(size=(200, 5)) + 6 * np.eye(5)[random.integers(0, 5, 200)]
    flat, equal = random.normal(size=(200, 5)), np.roll(confident, 1, axis=1)
    score = o.evaluate_ood(confident, flat)
    assert [s.auroc for s in score] == sorted((f.auroc for f in score), reverse=True)
    assert score[-1].auroc > 0.9 and score[0].auroc_low <= score[0].auroc <= score[0].auroc_high
    assert all(f.auroc == pytest.approx(0.5, abs=1e-3) for f in o.evaluate_ood(confident, equal))


def test_ood_images_are_read_from_a_source_or_from_any_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "deep/b.jpg", "deep/c.png"):
        Image.fromarray(np.full((9, 5, 3), 40, np.uint8)).save(tmp_path / name)
    (tmp_path / "deep/c.png").rename(tmp_path / "deep/no_ending")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_text("left there by a system")
    config = dataclasses.replace(CONFIG, ood=str(tmp_path))
    assert len(read_ood_images(config, limit=9)) == 3 and len(read_ood_images(config, limit=2)) == 2
    assert ood_name(config) == "/".join(tmp_path.parts[-2:])
    cifar = TrainConfig(analysis="full")
    assert ood_source(cifar) == "digits" and len(read_ood_images(cifar, limit=30)) == 30
    assert ood_source(TrainConfig(analysis="quick")) == ood_source(CONFIG) == "none"
    assert len(read_ood_images(TrainConfig(analysis="quick", ood="digits"), limit=5)) == 5


def test_the_training_data_as_ood_source_and_a_missing_folder_are_rejected():
    with pytest.raises(ConfigError, match="the same as data: choose another"):
        read_ood_images(dataclasses.replace(CONFIG, ood="digits"), limit=1)
    with pytest.raises(DataError, match="no folder /nowhere"):
        read_ood_images(dataclasses.replace(CONFIG, ood="/nowhere"), limit=1)
    with pytest.raises(ConfigError, match="type --analysis quick"):
        TrainConfig(analysis="none", ood="digits")


def test_more_images_of_a_source_contain_the_fewer():
    few, many = (read_ood_images(dataclasses.replace(CONFIG, data="folder", ood="digits"), n) for n in (5, 20))
    assert (len(few), len(many)) == (5, 20)
    assert {image.tobytes() for image in few} < {image.tobytes() for image in many}


@pytest.mark.parametrize("ood", ["digits", "/nowhere"])
def test_check_ood_raises_what_reading_the_images_raises(ood):
    config = dataclasses.replace(CONFIG, ood=ood)
    with pytest.raises((ConfigError, DataError)) as expected:
        read_ood_images(config, limit=5)
    with pytest.raises(type(expected.value), match=re.escape(str(expected.value))):
        check_ood(config)


def test_check_ood_reads_no_archive_that_is_on_disk(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cifar-10-python.tar.gz").write_bytes(b"not read")
    monkeypatch.chdir(tmp_path)
    check_ood(dataclasses.replace(CONFIG, ood="cifar10"))
