"""The analysis of an evaluation: which checks run, what they find, and attention rollout."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from support.planted import CONFIG, planted_splits, random_network, scored

from vitcifar.evaluation.analysis import analyze, attention_maps, balanced_indices, rollout
from vitcifar.model.predict import predict_embeddings, predict_logits
from vitcifar.training.feature_cache import Embedder


@pytest.fixture(scope="module")
def splits():
    return planted_splits()


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module", name="scored")
def scored_once():
    return scored()


def run_analysis(network, splits, scored, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return analyze(
        *(scored[0], splits.test, scored[1], config),
        predictor=lambda images: predict_logits(network, images),
        trained_on={"train": splits.train, "validation": splits.validation},
        embedder=Embedder(network, config, None),
    )


@pytest.fixture(scope="module")
def full(network, splits, scored):
    return run_analysis(network, splits, scored)


def test_attention_maps_are_of_errors_first_then_of_correct_predictions(network, splits, scored):
    evaluation = scored[0]
    maps = attention_maps(network, splits.test, evaluation)
    correct = [bool(evaluation.correct[index]) for index in maps]
    assert correct == sorted(correct) and not correct[0]
    side = network.image_size // network.backbone.patch_size
    assert all(patches.shape == (side, side) and patches.sum() == pytest.approx(1) for patches in maps.values())


def test_planted_duplicates_are_found_with_their_ids(full, splits):
    train, validation, test = splits.train, splits.validation, splits.test
    same = {(pair.split, pair.id, pair.other_id) for pair in full.duplicates.listed if pair.same_pixels}
    assert same == {("train", train.ids[5], test.ids[2]), ("train", train.ids[9], test.ids[7])}
    nearly = {(pair.split, pair.id, pair.other_id) for pair in full.duplicates.listed if not pair.same_pixels}
    assert nearly == {("validation", validation.ids[3], test.ids[11])}


def test_the_same_duplicates_are_found_without_the_network(full, network, splits, scored):
    quick = run_analysis(network, splits, scored, analysis="quick")
    assert {(p.id, p.other_id) for p in quick.duplicates.listed} == {(p.id, p.other_id) for p in full.duplicates.listed}


def test_full_runs_every_check_and_quick_the_cheap_ones(full, network, splits, scored):
    assert full.threshold and full.slices and full.attention and full.nearest and full.robustness
    assert full.robustness.num_images == 3 and full.robustness.accuracy.shape == (15, 5)
    quick = run_analysis(network, splits, scored, analysis="quick")
    assert quick.threshold and quick.slices and quick.attention
    assert quick.nearest is None and quick.robustness is None and quick.ood == ()
    none = run_analysis(network, splits, scored, analysis="none")
    assert none.threshold and none.duplicates is None and none.attention is None and not none.slices


def test_corruptions_and_threshold_can_be_switched_off(network, splits, scored):
    assert run_analysis(network, splits, scored, corruption_images=0).robustness is None
    evaluation = dataclasses.replace(scored[0], threshold=0.0)
    assert run_analysis(network, splits, (evaluation, scored[1])).threshold is None


def test_without_the_training_images_there_are_no_duplicates_and_no_nearest_images(network, splits, scored):
    inputs = {"predictor": lambda images: predict_logits(network, images), "embedder": Embedder(network, CONFIG, None)}
    analysis = analyze(scored[0], splits.test, scored[1], CONFIG, trained_on={}, **inputs)
    assert analysis.duplicates is None and analysis.nearest is None and analysis.attention


def test_nearest_images_are_training_images_of_the_most_confident_errors(full, scored, splits):
    evaluation = scored[0]
    errors = full.nearest.queries
    assert not evaluation.correct[errors].any()
    assert evaluation.confidences[errors[0]] == evaluation.confidences[~evaluation.correct].max()
    assert set(full.to_dict(splits.test)["nearest_training"]) == {splits.test.ids[index] for index in errors}
    assert full.nearest.train is splits.train


def test_the_cosine_of_neighbours_is_that_of_embeddings_less_their_mean(full, network, splits):
    train, test = (
        predict_embeddings(network, split.images).astype(np.float64) for split in (splits.train, splits.test)
    )
    query, first = full.nearest.queries[0], full.nearest.indices[0, 0]
    a, b = test[query] - train.mean(axis=0), train[first] - train.mean(axis=0)
    assert full.nearest.cosines[0, 0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-4)


def test_balanced_indices_take_the_classes_in_turn():
    labels = np.array([0, 0, 0, 1, 1, 2, 0, 2])
    assert balanced_indices(labels, 3).tolist() == [0, 3, 5]
    assert balanced_indices(labels, 5).tolist() == [0, 1, 3, 4, 5]
    assert balanced_indices(labels, 99).tolist() == list(range(8))
    assert balanced_indices(labels[:0], 3).tolist() == []


def test_the_threshold_of_the_evaluation_is_applied_to_the_test_images(full, scored):
    evaluation = scored[0]
    answered = evaluation.confidences >= 0.2
    assert full.threshold.confidence == 0.2 and full.threshold.target == 0.5
    assert full.threshold.num_answered == answered.sum()
    assert full.scalars()["precision_at_threshold"] == pytest.approx(evaluation.correct[answered].mean())


def test_an_analysis_converts_to_json_and_its_metrics_are_finite(full, splits):
    text = json.dumps(full.to_dict(splits.test), allow_nan=False)
    assert splits.train.ids[5] in text and json.loads(text)["robustness"]["num_images"] == 3
    assert all(np.isfinite(value) for value in full.scalars().values())
    assert full.scalars()["corruption_accuracy"] == full.robustness.mean_accuracy
    assert len(full.robustness.names) == 15


def test_ood_images_from_a_folder_are_scored(network, splits, scored, tmp_path):
    for index in range(4):
        Image.fromarray(np.full((9, 5, 3), 60 * index, np.uint8)).save(tmp_path / f"{index}.png")
    analysis = run_analysis(network, splits, scored, analysis="quick", ood=str(tmp_path))
    assert len(analysis.ood[0].outside) == 4 and len(analysis.ood[0].inside) == len(splits.test)
    assert analysis.scalars()["ood_auroc"] == max(score.auroc for score in analysis.ood)
    assert "inside" not in analysis.to_dict(splits.test)["ood"][0]


def test_rollout_worked_out_by_hand():
    one = np.array([[0.2, 0.8], [0.6, 0.4]])  # the class token and one patch
    two = np.array([[1.0, 0.0], [0.5, 0.5]])
    half = [(layer + np.eye(2)) / 2 for layer in (one, two)]
    assert rollout(np.stack([one, two])[:, None]).tolist() == [[1.0]]
    tokens = np.random.default_rng(0).dirichlet(np.ones(5), size=(3, 2, 5))  # (L, h, T, T)
    flow = np.eye(5)
    for layer in tokens:
        flow = (0.5 * layer.mean(axis=0) + 0.5 * np.eye(5)) @ flow
    assert rollout(tokens).ravel() == pytest.approx(flow[0, 1:] / flow[0, 1:].sum())
    assert half[1] @ half[0] == pytest.approx(np.array([[0.6, 0.4], [0.375, 0.625]]))


def test_rollout_is_largest_at_the_patch_that_the_class_token_attends_to():
    attention = np.full((2, 3, 10, 10), 0.1)
    attention[1, :, 0] = 0.01
    attention[1, :, 0, 1 + 5] = 0.91  # row 1, column 2 of 3 x 3
    full = rollout(attention)
    assert full.shape == (3, 3) and full.sum() == pytest.approx(1.0)
    assert np.unravel_index(full.argmax(), full.shape) == (1, 2)


def test_rollout_of_patches_that_are_not_a_square_is_rejected():
    with pytest.raises(AssertionError):
        rollout(np.full((1, 1, 7, 7), 1 / 7))
