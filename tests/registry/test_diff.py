"""The differences between two releases."""

import dataclasses
from typing import Any

from vitcifar.registry.diff import compare_releases
from vitcifar.release.manifest import Manifest


def release(accuracy: float, learning_rate: float, sha256: str) -> Manifest:
    test: dict[str, Any] = {"accuracy": accuracy, "loss": 0.5, "labels": [0, 1], "predictions": [0, int(accuracy)]}
    return Manifest(
        release_id="r",
        model_name="toy",
        class_names=("a", "b"),
        image_size=32,
        temperature=1.0,
        fingerprint="f",
        run_id="r",
        config={"learning_rate": learning_rate, "arch": "vit_tiny"},
        environment={"python": "3.11", "packages": {"torch": "2.13"}},
        checks={"test": test},
        files={"model.onnx": sha256},
    )


def test_differences_are_listed_by_section_without_the_values_of_single_images() -> None:
    found = compare_releases(release(0.9, 0.0, "a" * 64), release(0.8, 0.2, "b" * 64))
    assert [(one.section, one.name, one.before, one.after) for one in found] == [
        ("config", "learning_rate", 0.0, 0.2),
        ("metrics", "accuracy", 0.9, 0.8),
        ("files", "model.onnx", "a" * 64, "b" * 64),
    ]


def test_equal_releases_do_not_differ() -> None:
    assert compare_releases(release(0.9, 0.1, "a"), release(0.9, 0.1, "a")) == []


def test_a_threshold_that_is_never_reached_is_not_absent() -> None:
    """vitcifar 0.1 recorded it as 1 with the scores."""
    chosen = dataclasses.replace(release(0.9, 0.1, "a"), threshold=0.8, checks={"test": {"threshold": 0.8}})
    for recorded in (None, 1.0):
        never = dataclasses.replace(chosen, threshold=None, checks={"test": {"threshold": recorded}})
        found = [(one.section, one.name, one.before, one.after) for one in compare_releases(chosen, never)]
        assert found == [(name, "threshold", 0.8, "never confident") for name in ("metrics", "serving")]
