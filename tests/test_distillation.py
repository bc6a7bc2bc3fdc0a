"""A version as teacher, through the registry; and preprocessing that travels with the release."""

import dataclasses

import mlflow
import pytest

from vitcifar import pipeline
from vitcifar.data.splits import read_splits
from vitcifar.errors import ConfigError, RegistryError
from vitcifar.model.network import build_network, weights_sha256
from vitcifar.networks import make_network
from vitcifar.presets import resolve
from vitcifar.registry.description import describe_version
from vitcifar.release.build import describe
from vitcifar.release.cache import open_network

QUICK = {
    "train_per_class": 4, "validation_per_class": 2, "test_per_class": 2, "epochs": 1, "analysis": "none",
    "model_name": "toy", "promote_to": "none", "experiment": "taught",
}  # fmt: skip


def test_preprocessing_travels_with_a_release_and_into_what_starts_from_it(registry, published, monkeypatch):
    network = build_network(resolve("digits", normalization="half"), published.splits.class_names)
    network.set_constants(layer_norm_eps=1e-12)
    expected = {"mean": [0.5] * 3, "std": [0.5] * 3, "layer_norm_eps": 1e-12}
    preprocessing = describe(network, published.splits, {}, published.config, published.run_id).preprocessing
    assert preprocessing == {"resize": "bilinear, antialiased", **expected}
    release = dataclasses.replace(registry.pull(1, pytorch=True), preprocessing=preprocessing)
    assert open_network(release).constants == expected
    old = dataclasses.replace(release, preprocessing={"resize": "bilinear"})  # from before it was recorded
    assert open_network(old).constants == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
                                           "layer_norm_eps": 1e-6}  # fmt: skip
    monkeypatch.setattr(pipeline.Registry, "pull", lambda *given, **options: release)
    config = resolve("digits", **QUICK, weights="models:/toy/1")
    assert make_network(config, release.class_names).constants == expected
    config = dataclasses.replace(config, normalization="imagenet")
    assert make_network(config, release.class_names).constants["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("spec", ["champion", "@champion", "v1", "1", "models:/toy/1", "models:/toy@champion"])
def test_a_teacher_is_recorded_by_its_number(registry, spec):
    assert pipeline.check(resolve("digits", **QUICK, teacher=spec)).teacher == "models:/toy/1"


def test_a_run_and_its_version_say_which_version_taught_them(registry, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = pipeline.check(resolve("digits", **QUICK, teacher="2"))
    splits = read_splits(config)
    network = make_network(config, splits.class_names)
    with pipeline.start_run(config, "train") as run:
        pipeline.fit_and_log(run, network, splits, config)
    recorded = mlflow.get_run(run.run_id).data
    assert recorded.tags["teacher"] == recorded.params["config.teacher"] == "models:/toy/2"
    assert recorded.tags["teacher_weights_sha256"] == weights_sha256(published.networks[2])
    plain = make_network(config, splits.class_names)
    with pipeline.start_run(config, "train") as run:
        pipeline.fit_and_log(run, plain, splits, dataclasses.replace(config, teacher="none"))
    assert weights_sha256(network) != weights_sha256(plain)
    release = registry.pull(1)
    taught = dataclasses.replace(release, config={**release.config, "teacher": config.teacher})
    assert ", taught by models:/toy/2, seed 0" in describe_version(registry.show(1), taught)
    assert "taught" not in describe_version(registry.show(1), release)


def test_a_teacher_of_other_classes_or_none_at_all_stops_before_there_is_a_run(registry):
    config = resolve("digits", **QUICK, teacher="models:/toy/1")
    with pytest.raises(ConfigError, match=r"has the classes 0, 1, .*, the images have cat, dog: name a teacher"):
        make_network(config, ("cat", "dog"))
    with pytest.raises(RegistryError, match="has no version '7'"):
        pipeline.check(dataclasses.replace(config, teacher="7"))
