"""The model card, the difference of two versions and what pruning deletes, from each kind of store."""

from pathlib import Path

import pytest
from support.scores import add_version, scores

from vitcifar.errors import ConfigError, GateError
from vitcifar.registry.card import model_card
from vitcifar.registry.diff import diff
from vitcifar.registry.gates import Policy, promote
from vitcifar.registry.registry import Registry, prune


@pytest.fixture(scope="module")
def toy(workspace: Path) -> Registry:
    """Five versions: 1 is champion, 3 challenger, 2 was refused."""
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
    promote(registry, 1, reason="the first")
    promote(registry, 3, "challenger")
    with pytest.raises(GateError):
        promote(registry, 2, policy=Policy(require="better"))
    return registry


def test_the_card_says_what_was_recorded_and_nothing_else(toy: Registry) -> None:
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


def test_the_card_tells_of_a_refusal_too(toy: Registry) -> None:
    card = model_card(toy.show(2), toy.pull(2))
    assert ": rejected" in card
    assert "FAILED champion: against version 1 inconclusive" in card


def test_diff_tells_section_by_section_what_differs(toy: Registry) -> None:
    found = {(one.section, one.name): (one.before, one.after) for one in diff(toy, 1, "challenger")}
    assert found["config", "learning_rate"] == (0.0, 0.2)
    assert found["metrics", "accuracy"] == (0.9, 358 / 400)
    assert ("files", "model.onnx") in found
    assert not any(section == "environment" for section, _ in found)
    assert not any(name in ("predictions", "labels") for _, name in found)
    assert diff(toy, 1, 1) == []


def test_prune_keeps_the_newest_and_every_version_with_an_alias(toy: Registry) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        prune(toy, keep=0)
    assert [version.number for version in prune(toy, keep=1)] == [4, 2]
    assert len(toy.list()) == 5  # a dry run
    toy.move_alias("champion", 2, reason="only to see where a rollback goes")
    toy.rollback(reason="seen")
    toy.move_alias("champion", 5, reason="1 is what a rollback goes to")
    assert [version.number for version in prune(toy, keep=1)] == [4, 2]
    toy.rollback(reason="5 was only to see")
    assert [version.number for version in prune(toy, keep=2, dry_run=False)] == [2]
    assert [version.number for version in toy.list()] == [5, 4, 3, 1]
    assert toy.aliases() == {"champion": 1, "challenger": 3}
    assert prune(toy, keep=100) == []
