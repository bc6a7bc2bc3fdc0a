"""The features in the cache are bounded, and the command lists and deletes them."""

import os
import time

import pytest
from click.testing import CliRunner

from vitcifar.cache import PARTIAL_PREFIX, STALE_SECONDS, cached_features, features_dir, prune_features
from vitcifar.cli import main


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three files of features of 100 bytes, the first used last."""
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path))
    features_dir().mkdir()
    paths = [features_dir() / f"{letter * 64}.safetensors" for letter in "abc"]
    for age, path in enumerate(paths):
        path.write_bytes(bytes(100))
        os.utime(path, (time.time() - 60 * age,) * 2)
    return paths


def test_the_features_that_were_not_used_for_longest_are_deleted_until_the_rest_fits(files):
    assert [entry.path for entry in cached_features(features_dir())] == files
    assert prune_features(features_dir(), 300) == []
    assert [entry.path for entry in prune_features(features_dir(), 299)] == [files[2]]
    os.utime(files[1])
    assert [entry.path for entry in prune_features(features_dir(), 150)] == [files[0]]
    assert [entry.path for entry in cached_features(features_dir())] == [files[1]]


def test_what_a_killed_process_left_is_deleted_after_a_day(files):
    old, new = (features_dir() / f"{PARTIAL_PREFIX}{name}" for name in ("old", "new"))
    for path, age in ((old, STALE_SECONDS + 60), (new, 60)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    prune_features(features_dir(), 300)
    assert new.exists() and not old.exists() and all(path.exists() for path in files)


def test_the_command_counts_features_and_deletes_all_of_them(files):
    listed = CliRunner().invoke(main, ["cache", "list"])
    assert "3 files of features, 0.0 MB, in" in listed.output
    assert "0 files of features" in CliRunner().invoke(main, ["cache", "prune"]).output
    assert "3 files of features" in CliRunner().invoke(main, ["cache", "prune", "--keep-features", "0"]).output
    assert not any(path.exists() for path in files)
