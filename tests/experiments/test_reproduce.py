"""Versions are trained again from their recorded config, and differences are named."""

from pathlib import Path

import pytest
from support.scores import add_version, scores
from support.toys import settle

from vitcifar import pipeline
from vitcifar.config import resolve
from vitcifar.data.splits import read_splits
from vitcifar.errors import ReleaseError
from vitcifar.experiments import reproduce as reproducing
from vitcifar.experiments.reproduce import reproduce
from vitcifar.registry.registry import Registry

QUICK = {"train_per_class": 5, "validation_per_class": 2, "test_per_class": 2, "epochs": 1, "batch_size": 10}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """A registry with one trained version of the digits."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settle(folder, patch)
        config = resolve("digits", **QUICK, analysis="none", benchmark_runs=0, promote_to="none")
        done = pipeline.train(config)
        yield Registry(done.model_name), done, folder


def test_a_version_is_reproduced_bit_for_bit(trained):
    registry, done, _ = trained
    outcome = reproduce(registry, done.version)
    assert (outcome.version, outcome.same_weights) == (done.version, True)
    assert not [row for row in outcome.differences if row.section in ("weights", "metrics", "code", "environment")]


def test_other_images_are_rejected_before_training(trained, monkeypatch):
    registry, done, _ = trained
    other = read_splits(resolve("digits", **QUICK, data_seed=1))
    monkeypatch.setattr(reproducing, "read_splits", lambda config: other)
    with pytest.raises(ReleaseError, match=rf"expected fingerprint {done.fingerprint[:16]}.*Restore the images"):
        reproduce(registry, done.version)


def test_another_commit_is_a_warning_and_a_difference(trained, monkeypatch):
    registry, done, _ = trained
    monkeypatch.setattr(pipeline, "git_state", lambda: {"git_commit": "d" * 40, "git_dirty": "false"})
    with pytest.warns(UserWarning, match="this is dddd"):
        outcome = reproduce(registry, done.version)
    assert ("code", "commit") in [(row.section, row.name) for row in outcome.differences]


def test_a_config_of_another_vitcifar_names_the_commit_to_reproduce_with(trained):
    _, _, folder = trained
    git = {"commit": "c" * 40, "dirty": False}
    add_version(Path(folder), "old", scores(300), config={"a_setting_of_old": 1}, git=git)
    with pytest.raises(ReleaseError, match=f"check out commit {'c' * 40} and reproduce there"):
        reproduce(Registry("toy"), "latest")
