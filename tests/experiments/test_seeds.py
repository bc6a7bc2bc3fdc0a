"""One recipe with several seeds: nested runs, statistics on their parent, and the release of the best one."""

import dataclasses
import statistics
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.sweeps import TINY, family

from vitcifar import cli, pipeline
from vitcifar.data.splits import read_splits
from vitcifar.errors import ConfigError, TrainingError, VitCifarError
from vitcifar.experiments import seeds
from vitcifar.experiments.logs import compare_logs
from vitcifar.model.network import build_network
from vitcifar.presets import resolve
from vitcifar.training import batches, feature_cache
from vitcifar.training.distributed import LAUNCHED

NUM_OUTLIERS = 4
CHANGED = ("train_per_class=10", "validation_per_class=5", "test_per_class=5", "epochs=2")  # of TINY, in names


@pytest.fixture
def few_figures(monkeypatch):
    """Children without figures: drawing them takes longer than training."""
    monkeypatch.setattr("vitcifar.report.plots.figures", lambda *_: {})


def test_the_parent_of_seeds_has_the_mean_and_the_interval_of_its_children(store, few_figures, monkeypatch):
    released = SimpleNamespace(model_name="vitcifar", version=7, tags=lambda promote_to: {"version": "vitcifar/7"})
    monkeypatch.setattr(pipeline, "release", lambda run, network, *_: released)
    done = seeds.train_seeds(resolve("digits", **{**TINY, "analysis": "none", "learning_rate": 3e-3, "seed": 4}), 3)
    parent, children = family(store)
    assert (parent.info.run_name.split()[:4], parent.data.tags["kind"]) == (
        ["vit_tiny", "all", "lr3e-3", "s4-6"],
        "seeds",
    )
    assert sorted(children) == ["seed-4", "seed-5", "seed-6"]
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert len({run.data.params["config.fingerprint"] for run in children.values()}) == 1  # the same images
    assert len({run.data.metrics["validation/loss"] for run in children.values()}) == 3  # other weights
    assert len(parent.data.metrics) < 20, "few enough to compare runs by"
    for name in ("test/accuracy", "validation/best_accuracy"):
        values = [run.data.metrics[name] for run in children.values()]
        half = 4.302652729696 * statistics.stdev(values) / 3**0.5  # Student's t with 2 degrees of freedom
        mean = sum(values) / 3
        expected = {"mean": mean, "low": max(0, mean - half), "high": min(1, mean + half)}
        for part, value in expected.items():
            logged = parent.data.metrics[f"{name.replace('best_', '')}_{part}"]
            assert logged == pytest.approx(value, abs=1e-12)
    table = mlflow.load_table("seeds_table.json", run_ids=[parent.info.run_id])
    assert table["run_id"].tolist() == [children[f"seed-{seed}"].info.run_id for seed in (4, 5, 6)]
    assert "95% interval is Student's t over the seeds" in parent.data.tags["mlflow.note.content"]
    best = max(children.values(), key=lambda run: (max_of(store, run, "accuracy"), -max_of(store, run, "loss")))
    assert parent.data.tags["best_run"] == done.best.run_id
    assert max_of(store, best, "accuracy") == done.best.metrics["validation/accuracy"]
    assert parent.data.tags["version"] == "vitcifar/7"
    assert done.best.network is not None
    assert [run.network for run in done.runs if run is not done.best] == [None, None]


def test_a_further_seed_of_a_frozen_backbone_computes_no_features_and_its_analysis_none(store, tmp_path, monkeypatch):
    given = {"train_layers": "head", "corruption_images": 2, "promote_to": "none"}
    given["batch_size"] = batches.IMAGES_PER_BATCH  # as in training, whose features have another shape
    config = resolve("digits", **{**TINY, **given, "ood": str(outliers(tmp_path / "outliers"))})
    torch.save(build_network(config, tuple("abcdefghij")).backbone.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    features, embeddings, counts = batches.compute_features, feature_cache.predict_embeddings, []

    def count_features(network, loader, num_images, **given):
        counts[-1] += num_images
        return features(network, loader, num_images, **given)

    def count_embeddings(network, images, batch_size, **given):
        counts[-1] += len(images)
        return embeddings(network, images, batch_size, **given)

    def count_seed(*given, train=seeds.train_seed):
        counts.append(0)
        return train(*given)

    monkeypatch.setattr(batches, "compute_features", count_features)
    monkeypatch.setattr(feature_cache, "predict_embeddings", count_embeddings)
    monkeypatch.setattr(seeds, "train_seed", count_seed)
    monkeypatch.setattr(pipeline, "release", lambda *_: SimpleNamespace(tags=lambda promote_to: {}))
    config = dataclasses.replace(config, weights=str(tmp_path / "weights.pt"), analysis="full")
    done = seeds.train_seeds(config, 2)
    splits = read_splits(config)
    in_training = len(splits.train) + len(splits.validation)
    # 2 images in 75 ways, some of which are the same
    corrupted = counts[0] - 2 * in_training - len(splits.test) - NUM_OUTLIERS
    assert 100 < corrupted <= 152 and counts[1] == 0
    assert len({run.metrics["test/loss"] for run in done.runs}) == 2, "other heads"


def outliers(folder):
    """A folder of images of another kind."""
    folder.mkdir()
    for seed in range(NUM_OUTLIERS):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def max_of(client, run, name):
    return max(metric.value for metric in client.get_metric_history(run.info.run_id, f"validation/{name}"))


def test_the_best_seed_is_chosen_on_validation():
    def child(seed, validation, loss, test):
        metrics = {"validation/accuracy": validation, "validation/loss": loss, "test/accuracy": test}
        return seeds.SeedRun(
            seed=seed, run_id=str(seed), metrics=metrics, evaluation=None, result=None, network=object()
        )

    runs = seeds.drop_networks([child(0, 0.8, 0.3, 0.99), child(1, 0.9, 0.3, 0.5), child(2, 0.9, 0.2, 0.4)])
    assert [one.seed for one in runs if one.network] == [2]


def test_each_seed_is_named_and_what_they_have_in_common_is_said_once(
    store, few_figures, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(pipeline, "release", lambda *_: SimpleNamespace(tags=lambda promote_to: {}))
    config = resolve("digits", **{**TINY, "analysis": "none", "train_layers": "head", "seed": 4, "learning_rate": 0.0})
    torch.save(build_network(config, tuple("abcdefghij")).backbone.state_dict(), tmp_path / "weights.pt")
    seeds.train_seeds(dataclasses.replace(config, weights=str(tmp_path / "weights.pt"), epochs=1), 2)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("Seed")] == ["Seed 4 (1 of 2).", "Seed 5 (2 of 2)."]
    assert sum("is replaced by a new one" in line for line in lines) == 1
    assert sum(line.startswith("Epoch 1: ") for line in lines) == 2


def test_several_seeds_as_a_project_release_the_best_one(store, few_figures, monkeypatch):
    experiment = store.create_experiment("project")
    project = store.create_run(experiment, run_name="project").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", project)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    done = CliRunner().invoke(cli.main, ["train", "--preset=digits", "--analysis=none", "--seeds=2", *words])
    assert done.exit_code == 0, done.output
    runs = {run.info.run_name: run for run in store.search_runs([experiment])}
    names = ["project", *(f"vit_tiny all lr1e-3 s{seed} {' '.join(CHANGED)}" for seed in (0, 1))]
    assert sorted(runs) == names
    assert [runs[name].data.tags["kind"] for name in names] == ["seeds", "seed", "seed"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    version = store.get_model_version("vitcifar", "1")
    assert version.run_id == runs["project"].data.tags["best_run"]
    assert runs["project"].data.tags["version"] == "vitcifar/1"
    assert f"parent run     {project}" in done.output
    assert compare_logs(version.run_id).differences == ()
    assert compare_logs(project).differences == ()


def test_a_seed_that_fails_ends_the_parent_with_its_message_and_complete_ones_stay(store, few_figures, monkeypatch):
    learn = pipeline.fit_and_log

    def fail(run, network, splits, config, **more):
        if config.seed == 1:
            raise TrainingError("the loss became nan")
        return learn(run, network, splits, config, **more)

    monkeypatch.setattr(pipeline, "fit_and_log", fail)
    with pytest.raises(TrainingError, match="Seed 1: the loss became nan"):
        seeds.train_seeds(resolve("digits", **{**TINY, "analysis": "none"}), 3)
    parent, children = family(store)
    assert {name: run.info.status for name, run in children.items()} == {"seed-0": "FINISHED", "seed-1": "FAILED"}
    assert parent.info.status == "FAILED"
    assert parent.data.tags["failure"] == "Seed 1: the loss became nan"


def test_processes_that_train_one_run_together_cannot_train_several_seeds(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.setenv(name, "2")
    with pytest.raises(ConfigError, match="each seed is a run of its own: start one process"):
        seeds.train_seeds(resolve("digits"), 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"train_layers": "9"}, "there are 3 blocks"), ({"weights": "no/file.pt"}, "There is no file")],
)
def test_an_impossible_setting_is_an_error_before_there_is_a_run(store, tmp_path, setting, message):
    with pytest.raises(VitCifarError, match=message):
        seeds.train_seeds(resolve("digits", **{**TINY, **setting}), 2)
    assert not (tmp_path / "runs").exists()


def test_several_seeds_cannot_be_resumed():
    with pytest.raises(ConfigError, match="leave --seeds out"):
        seeds.train_seeds(resolve("digits", resume="last"), 2)


def test_the_interval_of_few_seeds_stays_within_what_the_metric_can_be():
    wide = seeds.mean_interval([0.54, 0.616], 1.0)  # Student's t with one degree of freedom: 0.095 to 1.061
    assert (round(wide.low, 3), wide.high) == (0.095, 1.0)
    assert seeds.mean_interval([0.01, 0.5]).low == 0 and seeds.mean_interval([0.01, 0.5]).high > 1
