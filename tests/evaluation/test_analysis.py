"""The closer look: attention as the network paid it, planted duplicates, the report, versions compared."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from vitcifar import cli, tracking
from vitcifar.config import TrainConfig, resolve
from vitcifar.data.splits import read_splits
from vitcifar.errors import ConfigError, DataError, ReleaseError
from vitcifar.evaluation.analysis import analyze, attention_maps, balanced
from vitcifar.evaluation.calibration import choose_threshold, fit_threshold
from vitcifar.evaluation.ood import choose, ood_name, ood_source, read_ood_images
from vitcifar.experiments.evaluate import compare_versions, evaluate_version, trained_on
from vitcifar.model.network import build_network
from vitcifar.model.predict import attention_weights, predict_embeddings, predict_logits
from vitcifar.release.load import open_network
from vitcifar.report.log import analyze_trained, score

CONFIG = resolve(
    "digits", train_per_class=6, validation_per_class=4, test_per_class=4, corruption_images=3, target_precision=0.5
)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Digits with three planted duplicates: a test image of the training set, and one of validation made brighter."""
    clean = read_splits(CONFIG)
    images = np.array(clean.test.images)
    images[2] = clean.train.images[5]
    images[7] = clean.train.images[9]
    images[11] = np.clip(clean.validation.images[3] * 0.9, 0, 255).astype(np.uint8)
    return dataclasses.replace(clean, test=dataclasses.replace(clean.test, images=images))


@pytest.fixture(scope="module")
def network(splits):
    made = build_network(CONFIG, splits.class_names)
    torch.nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(0))
    return made.eval()


@pytest.fixture(scope="module")
def scored(network, splits):
    logits = predict_logits(network, splits.test.images)
    return score(logits, splits, 1.0, 0.2), logits


def look(network, splits, scored, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return analyze(
        *(scored[0], splits.test, scored[1], config),
        predictor=lambda images: predict_logits(network, images),
        trained_on={"train": splits.train, "validation": splits.validation},
        network=network,
    )


@pytest.fixture(scope="module")
def found(network, splits, scored):
    return look(network, splits, scored)


# Attention and embeddings


def by_hand(network, image):
    """Every block's weights, asked for with need_weights, and the logits that come of it."""
    with torch.no_grad():
        tokens, weights = network.forward_features(network.preprocess(torch.from_numpy(image)[None]), 0), []
        for block in network.blocks:
            normed = block.ln_1(tokens)
            mixed, paid = block.self_attention(normed, normed, normed, need_weights=True, average_attn_weights=False)
            weights.append(paid[0].numpy())
            tokens = tokens + mixed
            tokens = tokens + block.mlp(block.ln_2(tokens))
        return np.stack(weights), network.forward_head(tokens, len(network.blocks))[0].numpy()


def test_attention_is_what_the_blocks_say_when_asked(network, splits):
    images = splits.test.images[:3]
    told = list(attention_weights(network, images, batch_size=2))
    heads, side = network.blocks[0].self_attention.num_heads, network.image_size // network.backbone.patch_size
    tokens = side * side + 1
    assert len(told) == 3 and told[0].shape == (len(network.blocks), heads, tokens, tokens)
    for image, weights in zip(images, told, strict=True):
        theirs, logits = by_hand(network, image)
        np.testing.assert_allclose(weights, theirs, atol=1e-6)
        np.testing.assert_allclose(logits, predict_logits(network, image[None])[0], atol=1e-4)
        assert weights.sum(axis=-1) == pytest.approx(1, abs=1e-5)


def test_asking_for_attention_changes_no_answer_and_leaves_nothing_behind(network, splits):
    before = predict_logits(network, splits.test.images[:4])
    network.train()
    list(attention_weights(network, splits.test.images[:2]))
    assert network.training
    network.eval()
    assert (predict_logits(network, splits.test.images[:4]) == before).all()
    for block in network.blocks:
        attention = block.self_attention
        assert not attention._forward_hooks and not attention._forward_pre_hooks


def test_attention_can_be_had_of_pictures_of_mixed_sizes(network, splits):
    images = [splits.test.images[0], np.full((40, 20, 3), 99, np.uint8)]
    assert len(list(attention_weights(network, images))) == 2


def test_maps_are_of_wrong_answers_first_and_of_right_ones(network, splits, scored):
    evaluation = scored[0]
    maps = attention_maps(network, splits.test, evaluation)
    correct = [bool(evaluation.correct[workspace]) for workspace in maps]
    assert correct == sorted(correct) and not correct[0]
    side = network.image_size // network.backbone.patch_size
    assert all(patches.shape == (side, side) and patches.sum() == pytest.approx(1) for patches in maps.values())


def test_embeddings_are_what_the_head_sees(network, splits):
    images = splits.test.images[:5]
    seen = torch.from_numpy(predict_embeddings(network, images, batch_size=2))
    width = network.head.in_features
    assert seen.shape == (5, width)
    with torch.no_grad():
        np.testing.assert_allclose(network.head(seen).numpy(), predict_logits(network, images), atol=1e-4)
    assert predict_embeddings(network, images[:0]).shape == (0, width)


# What is found


def test_planted_duplicates_are_found_with_their_ids(found, splits):
    train, validation, test = splits.train, splits.validation, splits.test
    same = {(pair.split, pair.id, pair.other_id) for pair in found.duplicates if pair.same_pixels}
    assert same == {("train", train.ids[5], test.ids[2]), ("train", train.ids[9], test.ids[7])}
    nearly = {(pair.split, pair.id, pair.other_id) for pair in found.duplicates if not pair.same_pixels}
    assert nearly == {("validation", validation.ids[3], test.ids[11])}


def test_duplicates_are_found_without_the_network_too(found, network, splits, scored):
    quick = look(network, splits, scored, analysis="quick")
    assert {(p.id, p.other_id) for p in quick.duplicates} == {(p.id, p.other_id) for p in found.duplicates}


def test_full_looks_at_everything_and_quick_at_what_costs_seconds(found, network, splits, scored):
    assert found.threshold and found.slices and found.attention and found.nearest and found.robustness
    assert found.robustness.num_images == 3 and found.robustness.accuracy.shape == (15, 5)
    quick = look(network, splits, scored, analysis="quick")
    assert quick.threshold and quick.slices and quick.attention
    assert quick.nearest is None and quick.robustness is None and quick.ood == ()
    none = look(network, splits, scored, analysis="none")
    assert none.threshold and none.duplicates is None and none.attention is None and not none.slices


def test_each_check_can_be_left_out(network, splits, scored):
    assert look(network, splits, scored, corruption_images=0).robustness is None
    evaluation = dataclasses.replace(scored[0], threshold=0.0)
    assert look(network, splits, (evaluation, scored[1])).threshold is None


def test_without_the_pictures_of_training_there_are_no_duplicates_and_no_nearest(network, splits, scored):
    answers = {"predictor": lambda images: predict_logits(network, images), "network": network}
    found = analyze(scored[0], splits.test, scored[1], CONFIG, trained_on={}, **answers)
    assert found.duplicates is None and found.nearest is None and found.attention


def test_nearest_pictures_are_of_the_surest_mistakes_and_from_training(found, scored, splits):
    evaluation = scored[0]
    wrong = [int(workspace) for workspace in found.nearest.places]
    assert not evaluation.correct[wrong].any()
    assert evaluation.confidences[wrong[0]] == evaluation.confidences[~evaluation.correct].max()
    assert set(found.to_dict(splits.test)["nearest_training"]) == {splits.test.ids[workspace] for workspace in wrong}
    assert found.nearest.train is splits.train


def test_robustness_asks_for_pictures_of_all_classes_in_turn():
    labels = np.array([0, 0, 0, 1, 1, 2, 0, 2])
    assert balanced(labels, 3).tolist() == [0, 3, 5]
    assert balanced(labels, 5).tolist() == [0, 1, 3, 4, 5]
    assert balanced(labels, 99).tolist() == list(range(8))
    assert balanced(labels[:0], 3).tolist() == []


def test_the_threshold_is_chosen_on_validation_and_told_for_the_test(found, scored):
    evaluation = scored[0]
    answered = evaluation.confidences >= 0.2
    assert found.threshold.confidence == 0.2 and found.threshold.target == 0.5
    assert found.threshold.num_answered == answered.sum()
    assert found.scalars()["precision"] == pytest.approx(evaluation.correct[answered].mean())


def test_a_target_that_cannot_be_reached_asks_for_certainty_and_no_target_for_nothing():
    confidences, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
    assert choose_threshold(confidences, correct, 0.95) == 0.8 == fit_threshold(confidences, correct, 0.95).confidence
    assert choose_threshold(confidences, correct, 0.0) == 0.0
    assert choose_threshold(confidences, ~correct, 0.95) == 1.0


def test_what_was_found_is_plain_json_and_finite_numbers(found, splits):
    text = json.dumps(found.to_dict(splits.test), allow_nan=False)
    assert splits.train.ids[5] in text and json.loads(text)["robustness"]["num_images"] == 3
    assert all(np.isfinite(value) for value in found.scalars().values())
    assert len([name for name in found.scalars() if name.startswith("corruption/")]) == 15


# Images of something else


def test_pictures_of_something_else_come_from_a_source_or_from_any_folder(tmp_path):
    from PIL import Image

    (tmp_path / "deep").mkdir()
    for name in ("a.png", "deep/b.jpg", "deep/c.png"):
        Image.fromarray(np.full((9, 5, 3), 40, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    config = dataclasses.replace(CONFIG, ood=str(tmp_path))
    assert len(read_ood_images(config, limit=9)) == 3 and len(read_ood_images(config, limit=2)) == 2
    assert ood_name(config) == "/".join(tmp_path.parts[-2:])
    cifar = TrainConfig(analysis="full")
    assert ood_source(cifar) == "digits" and len(read_ood_images(cifar, limit=30)) == 30
    assert ood_source(TrainConfig(analysis="quick")) == ood_source(CONFIG) == "none"
    assert len(read_ood_images(TrainConfig(analysis="quick", ood="digits"), limit=5)) == 5


def test_pictures_of_something_else_are_told_apart_in_the_report(network, splits, scored, tmp_path):
    from PIL import Image

    for workspace in range(4):
        Image.fromarray(np.full((9, 5, 3), 60 * workspace, np.uint8)).save(tmp_path / f"{workspace}.png")
    found = look(network, splits, scored, analysis="quick", ood=str(tmp_path))
    assert len(found.ood[0].outside) == 4 and len(found.ood[0].inside) == len(splits.test)
    assert "ood/energy_auroc" in found.scalars()
    assert "inside" not in found.to_dict(splits.test)["ood"][0]


def test_the_same_pictures_are_not_something_else_and_a_missing_folder_is_told():
    with pytest.raises(ConfigError, match="images of something else"):
        read_ood_images(dataclasses.replace(CONFIG, ood="digits"), limit=1)
    with pytest.raises(DataError, match="no folder /nowhere"):
        read_ood_images(dataclasses.replace(CONFIG, ood="/nowhere"), limit=1)
    with pytest.raises(ConfigError, match="type --analysis quick"):
        TrainConfig(analysis="none", ood="digits")


def test_the_choice_of_other_pictures_does_not_depend_on_their_number():
    ids = tuple(f"p{workspace}" for workspace in range(50))
    few, many = set(choose(ids, 5)), set(choose(ids, 20))
    assert few < many and len(many) == 20 and list(choose(ids, 99)) == list(range(50))


# The run and its report


@dataclasses.dataclass
class Memory:
    """A run that only remembers."""

    run_id: str = "0" * 32
    numbers: dict = dataclasses.field(default_factory=dict)
    texts: dict = dataclasses.field(default_factory=dict)
    figures: list = dataclasses.field(default_factory=list)

    def log(self, step, metrics):
        self.numbers |= metrics

    def log_text(self, name, text):
        self.texts[name] = text

    def log_json(self, name, content):
        self.texts[name] = json.dumps(content)

    def log_figure(self, name, figure):
        self.figures.append(name)

    log_image = log_figure


@pytest.fixture(scope="module")
def run(network, splits, scored):
    memory = Memory()
    analyze_trained(memory, network, splits, CONFIG, *scored)
    return memory


def test_a_run_gets_numbers_json_figures_and_the_report(run, splits):
    assert run.numbers["analysis/duplicates_same_pixels"] == 2
    assert 0 <= run.numbers["analysis/corruption_accuracy"] <= 1
    assert set(run.texts) == {"evaluation/analysis.json", "report.html"}
    names = ["threshold", "slices", "attention", "nearest", "robustness"]
    assert set(run.figures) == {f"analysis/{name}" for name in names}
    page = run.texts["report.html"]
    assert "vit_tiny on digits" in page and run.run_id in page and splits.fingerprint[:16] in page
    for title in ("Attention rollout", "Nearest training images", "Corruption robustness", "Near-duplicates"):
        assert f"<h2>{title}</h2>" in page
    assert splits.train.ids[5] in page


def test_no_examination_leaves_no_trace(network, splits, scored):
    memory = Memory()
    analyze_trained(memory, network, splits, dataclasses.replace(CONFIG, analysis="none"), *scored)
    assert memory == Memory()


def test_the_report_opens_offline_and_asks_nobody(run, tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here")
    file = tmp_path / "report.html"
    file.write_text(run.texts["report.html"], encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
        tab = context.new_page()
        asked, said = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(file.as_uri())
        wide = tab.evaluate("document.documentElement.scrollWidth")
        unseen = tab.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
        browser.close()
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert (said, wide, unseen) == ([], 1200, 0)


# Registered versions

EXPERIMENT = "examined"


@pytest.fixture
def here(registry, tmp_path, monkeypatch):
    """The registry of two versions, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return registry


def artifacts(run_id, folder=None):
    import mlflow

    return {item.path for item in mlflow.MlflowClient().list_artifacts(run_id, folder)}


def test_the_network_of_a_version_answers_as_it_was_released(here, published):
    network = open_network(here.pull(2, pytorch=True))
    images = published.splits.test.images
    np.testing.assert_allclose(
        predict_logits(network, images), predict_logits(published.networks[2], images), atol=1e-6
    )


@pytest.mark.parametrize("level", ["none", "full"])
def test_a_version_is_examined_as_far_as_was_asked(here, level):
    run_id, evaluation = evaluate_version(
        here, "2", experiment=EXPERIMENT, analysis=level, corruption_images=2, ood="none"
    )
    assert evaluation.num_images == 20
    assert ("report.html" in artifacts(run_id)) == (level == "full")
    figures = {path.rsplit("/", 1)[1] for path in artifacts(run_id, "figures/analysis")}
    assert figures == ({"slices.png", "attention.png", "nearest.png", "robustness.png"} if level == "full" else set())
    assert not tracking.compare_logs(run_id).differences


def test_pictures_of_something_else_that_are_missing_leave_no_run(here):
    import mlflow

    mlflow.MlflowClient().create_experiment("untouched")
    with pytest.raises(DataError, match="no folder"):
        evaluate_version(here, "1", experiment="untouched", ood="/nowhere")
    experiment = mlflow.MlflowClient().get_experiment_by_name("untouched")
    assert mlflow.MlflowClient().search_runs([experiment.experiment_id]) == []


def test_two_versions_are_compared_on_the_same_pictures(here, published):
    import mlflow

    run_id, comparison = compare_versions(here, "2", "champion", experiment=EXPERIMENT, margin=0.1)
    test = published.splits.test
    right = [predict_logits(published.networks[number], test.images).argmax(axis=1) == test.labels for number in (2, 1)]
    assert comparison.difference == pytest.approx(right[0].mean() - right[1].mean())
    assert comparison.gained == tuple(np.flatnonzero(right[0] & ~right[1]).tolist())
    run = mlflow.MlflowClient().get_run(run_id)
    assert run.data.tags["compares"] == "models:/toy/2" and run.data.tags["against"] == "1"
    assert run.data.metrics["compare/p_value"] == pytest.approx(comparison.p_value)
    assert "report.html" in artifacts(run_id)


def test_versions_that_were_tested_on_other_pictures_are_refused(here, monkeypatch):
    pull = here.pull

    def of_another_test(spec, **more):
        release = pull(spec, **more)
        return release if release.version == 2 else dataclasses.replace(release, fingerprint="f" * 64)

    monkeypatch.setattr(here, "pull", of_another_test)
    with pytest.raises(DataError, match="toy 1 was tested on other images"):
        compare_versions(here, "2", "1", experiment=EXPERIMENT)
    # The same images, named for both, can be compared.
    _, comparison = compare_versions(here, "2", "1", experiment=EXPERIMENT, data_seed=5)
    assert comparison.num_images == 20


def test_duplicates_are_looked_for_in_what_the_version_was_trained_on(here, published):
    """Its own training images, not those that a split of other images would train on."""
    release = here.pull(1)
    other = read_splits(dataclasses.replace(published.config, data_seed=9))
    assert other.train.ids != published.splits.train.ids
    assert trained_on(release, other)["train"].ids == published.splits.train.ids
    assert trained_on(dataclasses.replace(release, fingerprint="f" * 64), other) == {}
    gone = {**release.config, "data": "folder", "data_dir": "/nowhere"}
    assert trained_on(dataclasses.replace(release, config=gone), other) == {}


def test_the_weights_of_another_vitcifar_are_refused_in_a_sentence(here):
    release = here.pull(1, pytorch=True)
    another = dataclasses.replace(release, image_size=2 * release.image_size)
    with pytest.raises(ReleaseError, match="do not fit vit_tiny of this vitcifar"):
        open_network(another)


def test_compare_prints_the_verdict_and_where_it_is_kept(here, published):
    done = CliRunner().invoke(
        cli.main,
        ["compare", "2", "1", "--margin", "0.1", "--model-name", "toy", "--tracking-uri", published.uri],
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"^(better|worse|inconclusive): .* on the same 20 images", done.output)
    assert "by more than 10 points" in done.output and re.search(r"run +\w{32}", done.output)
