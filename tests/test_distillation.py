"""A version as teacher, through the registry; and preprocessing that travels with the release."""

import dataclasses

import mlflow
import pytest

from vitcifar import pipeline, tracking
from vitcifar.config import resolve
from vitcifar.data.splits import read_splits
from vitcifar.errors import ConfigError, RegistryError
from vitcifar.model.network import weights_sha256
from vitcifar.registry.description import describe_version
from vitcifar.registry.registry import Registry
from vitcifar.release.cache import open_network

QUICK = {
    "train_per_class": 4, "validation_per_class": 2, "test_per_class": 2, "epochs": 1, "analysis": "none",
    "benchmark_runs": 0, "promote_to": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The number of a version whose pixels are normalised by 0.5, registered in a store of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("distillation")
        patch.chdir(folder)
        patch.setenv("VITCIFAR_CACHE", str(folder / "cache"))
        tracking.connect("sqlite:///mlflow.db")
        yield pipeline.train(resolve("digits", **QUICK, normalization="half")).version


def test_preprocessing_travels_with_a_release_and_into_what_starts_from_it(teacher):
    release = Registry("vitcifar").pull(teacher, pytorch=True)
    expected = {"mean": [0.5] * 3, "std": [0.5] * 3, "layer_norm_eps": 1e-6}
    assert release.preprocessing == {"resize": "bilinear, antialiased", **expected}
    assert open_network(release).constants == expected
    config = resolve("digits", **QUICK, weights=f"models:/vitcifar/{teacher}")
    assert pipeline.make_network(config, release.class_names).constants == expected
    old = {name: value for name, value in release.preprocessing.items() if name == "resize"}  # before it was recorded
    assert open_network(dataclasses.replace(release, preprocessing=old)).constants["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("spec", ["latest", "1", "v1", "models:/vitcifar/latest"])
def test_a_teacher_is_recorded_by_its_number(teacher, spec):
    assert pipeline.check(resolve("digits", **QUICK, teacher=spec)).teacher == f"models:/vitcifar/{teacher}"


def test_a_run_says_which_version_taught_it(teacher):
    config = pipeline.check(resolve("digits", **QUICK, teacher="latest"))
    splits = read_splits(config)
    network = pipeline.make_network(config, splits.class_names)
    with pipeline.start_run(config, "train") as run:
        pipeline.fit_and_log(run, network, splits, config)
    recorded = mlflow.get_run(run.run_id).data
    release = Registry("vitcifar").pull(teacher, pytorch=True)
    assert recorded.tags["teacher"] == recorded.params["config.teacher"] == f"models:/vitcifar/{teacher}"
    assert recorded.tags["teacher_weights_sha256"] == release.checks["weights_sha256"]
    assert weights_sha256(network) != weights_sha256(pipeline.make_network(config, splits.class_names))
    taught = dataclasses.replace(release, config={**release.config, "teacher": config.teacher})
    version = Registry("vitcifar").show(teacher)
    assert ", taught by models:/vitcifar/1, seed 0" in describe_version(version, taught)
    assert "taught" not in describe_version(version, release)


def test_a_teacher_of_other_classes_or_none_at_all_stops_before_there_is_a_run(teacher):
    config = resolve("digits", **QUICK, teacher=f"models:/vitcifar/{teacher}")
    with pytest.raises(ConfigError, match=r"has the classes 0, 1, .*, the images have cat, dog: name a teacher"):
        pipeline.make_network(config, ("cat", "dog"))
    with pytest.raises(RegistryError, match="has no version '7'"):
        pipeline.check(dataclasses.replace(config, teacher="7"))
