"""The model card."""

import dataclasses
from pathlib import Path

import pytest
from support.scores import add_version, scores

from vitcifar.errors import GateError
from vitcifar.registry.card import model_card
from vitcifar.registry.registry import Registry

pytestmark = pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def toy(workspace: Path) -> Registry:
    """Five versions: 1 is champion, 3 challenger, 2 was rejected."""
    for index in range(5):
        config = {"arch": "vit_tiny", "learning_rate": 0.1 * index, "data": "digits"}
        add_version(
            workspace,
            f"release-{index}",
            scores(360 - index),
            config=config,
            counts={"test": {"a": 3, "b": 4}},
            git={"commit": "c" * 40, "dirty": index > 0},
        )
    registry = Registry("toy")
    registry.promote(1, reason="the first")
    registry.promote(3, "challenger")
    with pytest.raises(GateError):
        registry.promote(2, require="better")
    return registry


def test_the_card_shows_only_what_was_recorded(toy: Registry) -> None:
    card = model_card(toy.show(1), toy.pull(1))
    for line in (
        "# toy 1",
        "- aliases: champion",
        "- test: 7 images, 3 to 4 in each of 2 classes",
        "- accuracy: 0.9000 (95% interval",
        "- learning_rate: 0.0",
        f"- code: commit {'c' * 40}\n",
        "largest logit difference 1e-06, 0 of 400 predictions changed",
        ": passed: the first",
        "  - passed files: complete",
        "| red |",
    ):
        assert line in card
    assert "epochs" not in card
    assert "with uncommitted changes" in model_card(toy.show(2), toy.pull(2))


def test_the_card_shows_a_rejected_promotion(toy: Registry) -> None:
    card = model_card(toy.show(2), toy.pull(2))
    assert ": rejected" in card
    assert "FAILED champion: against version 1 inconclusive" in card


def test_class_names_cannot_break_the_card(toy: Registry) -> None:
    release = toy.pull(1)
    test = release.checks["test"]
    classes = [{**row, "name": "a|b\n# c"} for row in test["classes"]]
    release = dataclasses.replace(
        release, class_names=("a|b\n# c", "d", "e"), checks={**release.checks, "test": {**test, "classes": classes}}
    )
    card = model_card(toy.show(1), release)
    assert "- classes: a\\|b # c, d, e\n" in card
    assert card.count("\n| a\\|b # c | ") == 3
    assert "\n# c" not in card
