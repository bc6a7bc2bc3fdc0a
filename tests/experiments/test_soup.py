"""A soup of seeds: the mean of their weights, released only if it is better on validation, with its provenance."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from support.sweeps import TINY
from support.training import CLASSES, settings, shades

from vitcifar import pipeline
from vitcifar.cli import main
from vitcifar.errors import ConfigError, ReleaseError
from vitcifar.experiments import seeds
from vitcifar.experiments.soup import Soup, check_soup, make_soup, require_single_run
from vitcifar.model.network import build_network
from vitcifar.model.predict import predict_embeddings
from vitcifar.presets import resolve
from vitcifar.training import checkpoint

CONFIG = settings(train_layers="head", cache_disk=0.0)


@pytest.fixture
def network():
    return build_network(CONFIG, CLASSES)


@pytest.fixture
def splits():
    return SimpleNamespace(validation=shades(6, seed=1))


def good_head(network, splits):
    """A head that is right about every image of validation: the means of the classes."""
    embeddings = torch.from_numpy(predict_embeddings(network, splits.validation.images))
    means = torch.stack([embeddings[splits.validation.labels == label].mean(dim=0) for label in range(3)])
    weight = 20 * (means - means.mean(dim=0))
    return {"head.weight": weight, "head.bias": -(weight * (means + means.mean(dim=0)) / 2).sum(dim=1)}


def run(folder, seed, weights):
    folder = folder / str(seed)
    checkpoint.save({"weights": weights}, folder / checkpoint.BEST)
    return SimpleNamespace(seed=seed, run_id=f"run{seed}", folder=folder)


def shifted(weights, noise):
    return {"head.weight": weights["head.weight"] + noise, "head.bias": weights["head.bias"]}


@pytest.fixture
def runs(tmp_path, network, splits):
    """Two heads that are wrong in opposite ways, so that their mean is right, and one that is wrong everywhere."""
    good = good_head(network, splits)
    noise = 30 * torch.randn(good["head.weight"].shape, generator=torch.Generator().manual_seed(0))
    bad = {"head.weight": -50 * good["head.weight"], "head.bias": -50 * good["head.bias"]}
    heads = [shifted(good, noise), shifted(good, -noise), bad]
    return [run(tmp_path, seed, weights) for seed, weights in enumerate(heads)]


def test_a_greedy_soup_takes_what_makes_it_better_and_is_kept(network, splits, runs):
    soup = make_soup("greedy", runs, network, splits, CONFIG)
    assert (soup.seeds, soup.run_ids, soup.kept) == ((0, 1), ("run0", "run1"), True)
    assert soup.score.accuracy == 1.0 > soup.single.accuracy
    good = good_head(network, splits)
    assert torch.allclose(network.head.weight, good["head.weight"], atol=1e-4)
    assert "greedy soup of seeds 0, 1" in soup.summary() and "1.0000, loss" in soup.summary()


def test_a_uniform_soup_is_the_mean_of_all_and_is_not_kept_when_it_is_worse(network, splits, runs):
    first = checkpoint.load(runs[0].folder / checkpoint.BEST)["weights"]["head.weight"]
    soup = make_soup("uniform", runs, network, splits, CONFIG)
    assert soup.seeds == (0, 1, 2) and not soup.kept and soup.score.accuracy < soup.single.accuracy
    assert torch.equal(network.head.weight, first), "the network has the weights of the best run again"
    assert "not better than the best seed" in soup.summary()
    all_good = make_soup("uniform", runs[:2], network, splits, CONFIG)
    assert all_good.kept


def test_a_soup_of_one_run_is_not_better_than_it(network, splits, runs):
    soup = make_soup("greedy", [runs[1], runs[2]], network, splits, CONFIG)
    assert soup.seeds == (1,) and soup.score == soup.single and not soup.kept
    assert "seed 1 alone" in soup.summary()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": "none"}, "weights is none"),
        ({"weights": "a.pt", "lora_rank": 4, "train_layers": "all"}, "type --lora-rank 0"),
    ],
    ids=["random weights", "LoRA"],
)
def test_weights_that_cannot_be_averaged_are_refused(given, message):
    check_soup("none", resolve("cifar10", **given))
    with pytest.raises(ConfigError, match=message):
        check_soup("greedy", resolve("cifar10", **given))


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_several_seeds_release_their_soup_or_the_best_one(store, tmp_path, monkeypatch, kept):
    monkeypatch.setattr("vitcifar.report.plots.figures", lambda *_: {})
    monkeypatch.setattr(Soup, "kept", property(lambda self: kept))
    released = []

    def release(run, network, splits, config, evaluation, result, *, checks=None):
        released.append((run, network.head.weight.detach().clone(), result, checks))
        return SimpleNamespace(model_name="vitcifar", version=7, tags=lambda promote_to: {"version": "vitcifar/7"})

    monkeypatch.setattr(pipeline, "release", release)
    given = {**TINY, "train_layers": "head", "analysis": "none", "weights": str(tmp_path / "start.pt")}
    config = resolve("digits", **given)
    start = build_network(dataclasses.replace(config, weights="none"), tuple(map(str, range(10))))
    torch.save(start.state_dict(), tmp_path / "start.pt")
    done = seeds.train_seeds(config, 2, "uniform")
    ((run, weight, result, checks),) = released
    parent, logged = store.get_run(done.run_id), store.get_run(run.run_id)
    heads = [checkpoint.load(one.folder / checkpoint.BEST)["weights"]["head.weight"] for one in done.runs]
    assert done.soup is not None and parent.data.tags["soup"] == done.soup.summary()
    if not kept:
        assert (checks, logged.data.tags["kind"]) == (None, "seed") and torch.equal(weight, heads[done.best.seed])
        return
    assert logged.data.tags["kind"] == "soup"
    assert set(logged.data.tags["soup"].split(",")) == {one.run_id for one in done.runs}
    assert json.loads(json.dumps(checks))["soup"]["run_ids"] == logged.data.tags["soup"].split(",")
    assert torch.allclose(weight, (heads[0] + heads[1]) / 2, atol=1e-6)
    assert logged.data.metrics["validation/best_accuracy"] == done.soup.score.accuracy
    assert "test/accuracy" in logged.data.metrics
    assert result.options == " --seeds 2 --soup uniform" and result.options in logged.data.tags["mlflow.note.content"]
    found = SimpleNamespace(checks=checks, version=7)
    with pytest.raises(ReleaseError, match=r"Version 7 is a soup of several runs.*--seeds 2 --soup uniform"):
        require_single_run(found, config)


def test_a_soup_of_one_seed_is_said_to_need_more():
    done = CliRunner().invoke(main, ["train", "--soup", "greedy"])
    assert done.exit_code == 1 and "several seeds, but seeds is 1: type --seeds 5" in done.output
