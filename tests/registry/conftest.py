"""A store with versions of a toy model."""

from pathlib import Path

import pytest
from support.releases import add_version


@pytest.fixture(scope="module")
def store(workspace: Path) -> Path:
    """Each store in turn, with three versions of `toy`; a folder to work in."""
    for release_id in ("one", "two", "three"):
        add_version(workspace, release_id)
    return workspace
