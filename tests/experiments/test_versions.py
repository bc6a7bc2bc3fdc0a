"""Registered versions: evaluated, compared, and trained again from their recorded config with differences named."""

import dataclasses
import re
import shutil
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.releases import export_own_graph
from support.scores import add_version, scores
from support.toys import settle

from vitcifar import cli, pipeline
from vitcifar.config import TrainConfig
from vitcifar.data.splits import read_splits
from vitcifar.errors import DataError, ReleaseError
from vitcifar.experiments import versions
from vitcifar.experiments.logs import compare_logs
from vitcifar.experiments.versions import compare_versions, evaluate_version, reproduce, trained_on
from vitcifar.model.predict import predict_logits
from vitcifar.presets import resolve
from vitcifar.registry.registry import Registry
from vitcifar.release.cache import open_network
from vitcifar.run import mlflow_points

EXPERIMENT = "evaluated"
QUICK = {"train_per_class": 5, "validation_per_class": 2, "test_per_class": 2, "epochs": 1, "batch_size": 10}


@pytest.fixture
def here(registry, tmp_path, monkeypatch):
    """The registry of two versions, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return registry


def artifacts(run_id, folder=None):
    return {item.path for item in mlflow.MlflowClient().list_artifacts(run_id, folder)}


def test_the_network_of_a_version_has_the_logits_it_was_released_with(here, published):
    network = open_network(here.pull(2, pytorch=True))
    images = published.splits.test.images
    np.testing.assert_allclose(
        predict_logits(network, images), predict_logits(published.networks[2], images), atol=1e-6
    )


@pytest.mark.parametrize("level", ["none", "full"])
def test_a_version_is_evaluated_to_the_selected_level(here, level):
    run_id, evaluation = evaluate_version(
        here, "2", experiment=EXPERIMENT, analysis=level, corruption_images=2, ood="none"
    )
    assert evaluation.num_images == 20
    assert ("report.html" in artifacts(run_id)) == (level == "full")
    figures = {path.rsplit("/", 1)[1] for path in artifacts(run_id, "figures/analysis")}
    assert figures == ({"slices.png", "attention.png", "nearest.png", "robustness.png"} if level == "full" else set())
    assert not compare_logs(run_id).differences


def test_other_images_are_evaluated_only_on_purpose_and_said(here, monkeypatch):
    with pytest.warns(UserWarning, match="toy 2 was tested on other images than these"):
        run_id, evaluation = evaluate_version(
            here, "2", experiment=EXPERIMENT, analysis="quick", ood="none", test_per_class=3
        )
    run = mlflow.MlflowClient().get_run(run_id)
    assert (evaluation.num_images, run.data.tags["other_images"]) == (30, "true")
    assert run.info.run_name == "evaluate toy 2 on other images"
    assert "other than those of its release" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/report.html")
    read = versions.read_splits

    def read_changed(config):
        splits = read(config)
        splits.test.images[0] = 255 - splits.test.images[0]
        return splits

    monkeypatch.setattr(versions, "read_splits", read_changed)
    with pytest.raises(DataError, match=r"toy 2 was tested on other images than these .*restore them, or name images"):
        evaluate_version(here, "2", experiment=EXPERIMENT, analysis="none")


def test_a_folder_with_test_images_alone_is_evaluated_as_other_images(here, published, tmp_path):
    test = published.splits.test
    for image, label, index in zip(test.images, test.labels, range(19), strict=False):  # one less: unbalanced
        (tmp_path / f"new/test/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"new/test/{label}/{index}.png")
    folder = {"data": "folder", "data_dir": str(tmp_path / "new"), "test_per_class": 0}
    with pytest.warns(UserWarning, match="toy 2 was tested on other images than these"):
        run_id, evaluation = evaluate_version(here, "2", experiment=EXPERIMENT, analysis="none", **folder)
    correct = predict_logits(published.networks[2], test.images[:19]).argmax(axis=1) == test.labels[:19]
    assert evaluation.num_images == 19 and evaluation.accuracy == pytest.approx(correct.mean())
    assert mlflow.MlflowClient().get_run(run_id).data.tags["other_images"] == "true"
    (tmp_path / "new/test/0").rename(tmp_path / "new/test/zero")
    with pytest.raises(DataError, match=r"toy 2 has the classes 0, 1, .*, the images have 1, .*, zero: name images"):
        evaluate_version(here, "2", experiment=EXPERIMENT, analysis="none", **folder)


def test_missing_ood_images_leave_no_run(here):
    mlflow.MlflowClient().create_experiment("untouched")
    with pytest.raises(DataError, match="no folder"):
        evaluate_version(here, "1", experiment="untouched", ood="/nowhere")
    experiment = mlflow.MlflowClient().get_experiment_by_name("untouched")
    assert mlflow.MlflowClient().search_runs([experiment.experiment_id]) == []


def test_two_versions_are_compared_on_the_same_images(here, published):
    run_id, comparison = compare_versions(here, "2", "champion", experiment=EXPERIMENT, margin=0.1)
    test = published.splits.test
    right = [predict_logits(published.networks[number], test.images).argmax(axis=1) == test.labels for number in (2, 1)]
    assert comparison.difference == pytest.approx(right[0].mean() - right[1].mean())
    assert comparison.gained == tuple(np.flatnonzero(right[0] & ~right[1]).tolist())
    run = mlflow.MlflowClient().get_run(run_id)
    assert run.data.tags["compares"] == "models:/toy/2" and run.data.tags["against"] == "1"
    assert run.data.metrics["test/p_value"] == pytest.approx(comparison.p_value)
    report = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/report.html")
    assert "Only version 1 (champion) correct" in report and "hallenger" not in report
    assert comparison.names == ("version 2", "version 1 (champion)")


def test_versions_tested_on_different_images_are_rejected(here, monkeypatch):
    pull = here.pull_version

    def of_another_test(version):
        release = pull(version)
        return release if release.version == 2 else dataclasses.replace(release, fingerprint="f" * 64)

    monkeypatch.setattr(here, "pull_version", of_another_test)
    with pytest.raises(DataError, match="toy 1 was tested on other images"):
        compare_versions(here, "2", "1", experiment=EXPERIMENT)
    # On images selected for both they can be compared, and that is said.
    run_id, comparison = compare_versions(here, "2", "1", experiment=EXPERIMENT, data_seed=5)
    assert comparison.num_images == 20
    run = mlflow.MlflowClient().get_run(run_id)
    assert run.info.run_name == "toy version 2 against version 1 (champion), on other images"
    assert run.data.tags["other_images"] == "true"
    assert "other than those of their releases" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/report.html")


def test_duplicates_are_searched_in_the_training_images_of_the_version(here, published):
    """Its own training images, not those of the split under evaluation."""
    release = here.pull(1)
    other = read_splits(dataclasses.replace(published.config, data_seed=9))
    assert other.train.ids != published.splits.train.ids
    assert trained_on(release, other)["train"].ids == published.splits.train.ids
    assert trained_on(dataclasses.replace(release, fingerprint="f" * 64), other) == {}
    gone = {**release.config, "data": "folder", "data_dir": "/nowhere"}
    assert trained_on(dataclasses.replace(release, config=gone), other) == {}


def test_weights_that_do_not_fit_the_network_are_rejected_in_one_sentence(here):
    release = here.pull(1, pytorch=True)
    another = dataclasses.replace(release, image_size=2 * release.image_size)
    with pytest.raises(ReleaseError, match="do not fit vit_tiny of this vitcifar"):
        open_network(another)


def test_compare_prints_the_outcome_and_its_run(here, published):
    done = CliRunner().invoke(
        cli.main,
        ["compare", "2", "1", "--margin", "0.1", "--model-name", "toy", "--tracking-uri", published.uri],
    )
    assert done.exit_code == 0, done.output
    named = r"^version 2 against version 1 \(champion\): (better|worse|inconclusive): .* on the same 20 images"
    assert re.search(named, done.output)
    assert "by more than 10 points" in done.output and re.search(r"run +\w{32}", done.output)


def test_a_benchmark_says_that_the_test_images_have_changed(here, published, monkeypatch):
    """The accuracies are then those of the release, which has none of the pt2 file."""
    read = versions.read_splits

    def read_changed(config):
        splits = read(config)
        splits.test.images[:] = 255 - splits.test.images
        return splits

    monkeypatch.setattr(versions, "read_splits", read_changed)
    options = ["--version", "2", "--threads", "1", "--runs", "2", "--model-name", "toy"]
    done = CliRunner().invoke(cli.main, ["benchmark", *options, "--tracking-uri", published.uri])
    assert done.exit_code == 0, done.output
    assert "test images of version 2 have changed; the accuracies are those recorded" in done.stderr
    (pt2,) = [line for line in done.stdout.splitlines() if line.startswith("pt2")]
    assert pt2.split()[3] == "-"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, new_store: Path):
    """A registry with one trained version of the digits."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(new_store, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settle(folder, patch)
        export_own_graph(patch)
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
    monkeypatch.setattr(versions, "read_splits", lambda config: other)
    with pytest.raises(ReleaseError, match=rf"expected fingerprint {done.fingerprint[:16]}.*Restore the images"):
        reproduce(registry, done.version)


def test_a_worker_of_a_reproduction_only_shares_the_training(trained, monkeypatch):
    """It runs the command of rank 0, and leaves no run of its own."""
    _, done, _ = trained
    worker = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    configs: list[TrainConfig] = []
    monkeypatch.setattr(pipeline, "train_worker", configs.append)
    command = ["reproduce", str(done.version), "--tracking-uri", mlflow.get_tracking_uri()]
    outcome = CliRunner().invoke(cli.main, command, env=worker)
    assert outcome.exit_code == 0, outcome.output
    assert configs == [resolve("digits", **QUICK, analysis="none", benchmark_runs=0, promote_to="none")]


@pytest.mark.parametrize("split", ["train", "test"])
def test_only_the_test_images_decide_whether_a_version_was_tested_on_them(trained, split):
    registry, done, _ = trained
    splits = read_splits(resolve("digits", **QUICK))
    splits.datasets[split].images[0] = 255 - splits.datasets[split].images[0]
    assert versions.tested_on(registry.pull(done.version), splits) == (split == "train")


def test_another_commit_is_a_warning_and_a_difference(trained, monkeypatch):
    registry, done, _ = trained
    monkeypatch.setattr(versions, "git_state", lambda: {"commit": "d" * 40, "dirty": False})
    with pytest.warns(UserWarning, match="this is dddd"):
        outcome = reproduce(registry, done.version)
    assert ("code", "commit") in [(row.section, row.name) for row in outcome.differences]


def test_a_config_of_another_vitcifar_names_the_commit_to_reproduce_with(trained):
    _, _, folder = trained
    git = {"commit": "c" * 40, "dirty": False}
    add_version(Path(folder), "old", scores(300), config={"a_setting_of_old": 1}, git=git)
    for command in (reproduce, partial(evaluate_version, experiment=EXPERIMENT)):
        with pytest.raises(ReleaseError, match=f"check out commit {'c' * 40} and type the command there"):
            command(Registry("toy"), "latest")


def test_the_weights_are_the_same_from_another_number_of_threads(trained):
    """The recorded number is set for the training, and the former one afterwards."""
    registry, done, _ = trained
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        outcome = reproduce(registry, done.version)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert outcome.same_weights and not outcome.why
    assert not [row for row in outcome.differences if row.section == "environment"]


@pytest.mark.parametrize("recorded", [True, False])
def test_other_weights_are_told_with_the_first_step_and_the_likely_cause(trained, monkeypatch, recorded):
    """As on another machine, or for an old version, which does not record its threads: another seed stands for it."""
    registry, done, _ = trained
    pull = registry.pull

    def changed(spec):
        release = pull(spec)
        numerics = {**release.environment["numerics"], "instructions": "AVX1"}
        environment = {**release.environment, "numerics": numerics}
        if not recorded:
            del environment["numerics"]
        return dataclasses.replace(release, config={**release.config, "seed": 1}, environment=environment)

    monkeypatch.setattr(registry, "pull", changed)
    outcome = reproduce(registry, done.version)
    assert not outcome.same_weights
    assert outcome.first_step.name == "step/gradient_norm at step 1"  # the head is zero, so the loss is log(10)
    points = {point[:2]: point[2] for point in mlflow_points(registry.client, done.run_id)}
    assert outcome.first_step.before == points["step/gradient_norm", 1] != outcome.first_step.after
    why = "The likely cause: instructions AVX1, now " if recorded else "Its number of threads is not recorded"
    assert outcome.why.startswith(why)
