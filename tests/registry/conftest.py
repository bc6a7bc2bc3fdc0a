"""A store with versions of a toy model, and its registry."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.releases import add_version

from vitcifar.cache import cache_dir
from vitcifar.registry.registry import Registry


@pytest.fixture(scope="module")
def store(workspace: Path) -> Path:
    """Each kind of store in turn, with three versions of `toy`; returns a folder to work in."""
    for release_id in ("one", "two", "three"):
        add_version(workspace, release_id)
    return workspace


@pytest.fixture
def toy(store: Path) -> Iterator[Registry]:
    """The registry of `toy`, without aliases or history."""
    registry = Registry("toy")
    yield registry
    model = registry.client.get_registered_model("toy")
    for alias in model.aliases:
        registry.client.delete_registered_model_alias("toy", alias)
    for key in model.tags:
        registry.client.delete_registered_model_tag("toy", key)
    shutil.rmtree(cache_dir(), ignore_errors=True)
