"""The head by logistic regression: what scikit-learn's own cross-validation finds, in one step that can be resumed."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from support.training import CLASSES, Logged, settings, shades

from vitcifar.errors import ConfigError, TrainingError
from vitcifar.model.network import build_network, weights_sha256
from vitcifar.presets import resolve
from vitcifar.training import head_solver
from vitcifar.training.checkpoint import BEST, LAST, load
from vitcifar.training.feature_cache import FeatureCache
from vitcifar.training.head_solver import STRENGTHS, fit_head, solve_head

LBFGS = {"train_layers": "head", "head_solver": "lbfgs"}


def samples(num_classes=3, per_class=12, noise=1.5, seed=0):
    """Features (N, 6) of overlapping classes, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), per_class)
    return (np.eye(6)[labels] + noise * random.normal(size=(len(labels), 6))).astype(np.float32), labels


def test_the_strength_of_l2_and_the_head_are_those_of_a_search_by_hand():
    features, labels = samples()
    head = fit_head(features[None], labels, seed=3)
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    scores = [
        cross_val_score(
            LogisticRegression(C=strength, max_iter=1000), features, labels, cv=folds, scoring="neg_log_loss"
        ).mean()
        for strength in STRENGTHS
    ]
    assert head.strength == STRENGTHS[np.argmax(scores)] and STRENGTHS[0] < head.strength < STRENGTHS[-1]
    assert head.loss == pytest.approx(-max(scores), abs=1e-3)
    reference = LogisticRegression(C=head.strength, max_iter=1000).fit(features.astype(np.float64), labels)
    assert np.allclose(head.weight, reference.coef_, atol=1e-6)
    assert np.allclose(head.bias, reference.intercept_, atol=1e-6)


def test_all_views_of_an_image_are_in_one_fold():
    random = np.random.default_rng(0)
    noise, labels = random.normal(size=(60, 40)), np.tile(np.arange(3), 20)
    head = fit_head(np.stack([noise, noise, noise]).astype(np.float32), labels, seed=0)
    assert head.loss > 1.05, "labels of noise cannot be predicted, unless from another view of the same image"


def test_two_classes_have_a_row_each_and_the_probabilities_of_the_regression():
    features, labels = samples(num_classes=2)
    head = fit_head(features[None], labels, seed=0)
    logits = torch.from_numpy(features @ head.weight.T + head.bias)
    reference = LogisticRegression(C=head.strength, max_iter=1000).fit(features.astype(np.float64), labels)
    assert np.allclose(torch.softmax(logits, 1).numpy(), reference.predict_proba(features), atol=1e-5)


def test_a_class_of_one_image_cannot_be_cross_validated():
    with pytest.raises(TrainingError, match="at least 2 training images of each class"):
        fit_head(np.zeros((1, 3, 2), np.float32), np.array([0, 0, 1]), seed=0)


def solved(folder, log=None, notify=lambda message: None, resume=None, cache=None, **given):
    config = settings(**{**LBFGS, **given})
    network = build_network(config, CLASSES)
    log = Logged() if log is None else log
    data = (network, shades(8), shades(4, seed=1), config)
    result = solve_head(*data, log=log, folder=folder, notify=notify, resume=resume, feature_cache=cache)
    return network, result


def test_the_head_is_fitted_and_logged_in_one_step(tmp_path):
    log, said = Logged(), []
    network, result = solved(tmp_path, log, said.append, optimizer="adamw", epochs=3)
    assert {step for _, step in log} == {1}
    assert log["validation/accuracy", 1] == result.best_metrics["validation/accuracy"] == 1.0
    assert (
        log["train/inverse_l2", 1] in STRENGTHS and log["train/loss", 1] < log["train/cross_validation_loss", 1] < 1.1
    )
    assert (result.num_epochs, result.best_epoch, result.best_step) == (1, 1, 1)
    assert f"fitted by L-BFGS, C = {log['train/inverse_l2', 1]:.3g}" in result.method
    assert torch.equal(load(tmp_path / BEST)["weights"]["head.weight"], network.head.weight)
    assert any(message.startswith("epochs, optimizer, weight_decay: no effect") for message in said)


def test_a_complete_head_is_not_fitted_again_and_an_incomplete_one_is(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(head_solver, "fit_head", killed)
        solved(tmp_path)
    network, result = solved(tmp_path, resume=tmp_path / LAST)
    with monkeypatch.context() as patch:
        patch.setattr(head_solver, "fit_head", killed)
        again, same = solved(tmp_path, resume=tmp_path / LAST)
    assert weights_sha256(again) == weights_sha256(network) and same == result


def test_the_features_on_disk_change_no_bit_of_the_head(tmp_path):
    cache = FeatureCache(tmp_path / "features", 10**9, notify=lambda message: None)
    digests = [
        weights_sha256(solved(tmp_path / str(n), cache=kept, augmentation="flip", num_views=2)[0])
        for n, kept in enumerate((None, cache, cache))
    ]
    assert len(set(digests)) == 1


def test_features_that_do_not_fit_into_memory_are_an_error(tmp_path):
    with pytest.raises(TrainingError, match="type a larger --cache-memory"):
        solved(tmp_path, cache_memory=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_layers": "all"}, "but train_layers is all: type --train-layers head"),
        ({"mixup": 0.2}, "but mixup is 0.2: type --mixup 0"),
        ({"label_smoothing": 0.1}, "but label_smoothing is 0.1: type --label-smoothing 0"),
        ({"teacher": "champion"}, "but teacher is champion: type --teacher none"),
        ({"num_views": 0}, "type --num-views 1"),
        ({"num_processes": 2}, "in one process"),
    ],
    ids=str,
)
def test_settings_that_exclude_it_are_said_before_anything_is_read(given, message):
    with pytest.raises(ConfigError, match=message):
        resolve("cifar10", **{**LBFGS, **given})
