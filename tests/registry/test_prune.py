"""Old versions are deleted; nothing that is in use is, in this registered model or in another."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.releases import add_version, store_release

from vitcifar.errors import ConfigError, GateError, RegistryError, ReleaseError
from vitcifar.registry.aliases import move_alias
from vitcifar.registry.doctor import diagnose
from vitcifar.registry.prune import delete, file_users, prune
from vitcifar.registry.registration import register
from vitcifar.registry.registry import Registry
from vitcifar.release.manifest import read_manifest


def deleted(registry: Registry, keep: int) -> list[int]:
    old = prune(registry, keep=keep)
    for version in old:
        delete(registry, version)
    return [version.number for version in old]


def test_prune_deletes_neither_the_newest_nor_an_alias_nor_a_rollback_target(store: Path) -> None:
    registry = Registry("pruned")
    for index in range(5):
        add_version(store, f"pruned-{index}", "pruned")
    move_alias(registry, "champion", 1)
    move_alias(registry, "challenger", 3)
    with pytest.raises(ConfigError, match="at least 1"):
        prune(registry, keep=0)
    assert [version.number for version in prune(registry, keep=1)] == [4, 2]
    assert len(registry.list()) == 5  # a dry run
    move_alias(registry, "champion", 5, reason="a rollback returns to 1")
    assert [version.number for version in prune(registry, keep=1)] == [4, 2]
    registry.rollback(reason="back to 1")
    assert deleted(registry, keep=2) == [2]
    assert [version.number for version in registry.list()] == [5, 4, 3, 1]
    assert registry.aliases() == {"champion": 1, "challenger": 3}
    assert prune(registry, keep=100) == []


def test_deleting_a_version_keeps_what_another_one_is_made_of(toy: Registry, store: Path) -> None:
    model, digest = store_release(store, "shared", "shared")
    release = read_manifest(store / "shared" / "release.json")
    first, second = (register(release, model.model_id, digest) for _ in range(2))
    registry = Registry("shared")
    move_alias(registry, "champion", second)
    delete(registry, registry.show(first))
    assert registry.client.get_logged_model(model.model_id)
    with pytest.raises(RegistryError, match="is not deleted: champion points to it now"):
        delete(registry, registry.show(second))


def test_a_version_that_was_copied_keeps_its_files(store: Path) -> None:
    """MLflow's `copy_model_version` copies no file: the version in `prod` has those of the original."""
    registry, prod = Registry("origin"), Registry("prod")
    for index in range(3):
        add_version(store, f"origin-{index}", "origin")
    registry.client.copy_model_version("models:/origin/1", "prod")
    registry.client.copy_model_version("models:/prod/1", "second-hand")
    move_alias(prod, "champion", 1)
    model_id = registry.model_id(registry.show(1))
    assert sorted(file_users(registry)[model_id]) == ["origin 1", "prod 1", "second-hand 1"]
    with pytest.warns(UserWarning, match="origin 1 is kept: its files are those of prod 1, second-hand 1 too"):
        assert deleted(registry, keep=1) == [2]
    delete(registry, registry.show(1))  # without prune
    collect_garbage(registry)
    prod.verify_store(prod.show("champion"))
    assert diagnose(prod, stale_seconds=0) == []
    assert diagnose(registry, stale_seconds=0) == []


def test_a_version_made_by_hand_from_the_files_is_one_of_their_users(store: Path) -> None:
    registry = Registry("origin-2")
    add_version(store, "origin-2", "origin-2")
    location = registry.location(registry.show(1))
    if location.startswith("mlflow-artifacts:"):
        pytest.skip("MLflow's server takes no path of its files as a source")
    registry.client.create_registered_model("byhand")
    for source in (location, location.removesuffix("/artifacts")):
        registry.client.create_model_version("byhand", source, registry.show(1).run_id)
    users = file_users(registry)[registry.model_id(registry.show(1))]
    assert sorted(users) == ["byhand 1", "byhand 2", "origin-2 1"]


def test_the_doctor_finds_a_copy_whose_files_mlflow_would_delete(store: Path) -> None:
    registry = Registry("lost")
    add_version(store, "lost", "lost")
    registry.client.copy_model_version("models:/lost/1", "kept")
    model_id = registry.model_id(registry.show(1))
    registry.client.delete_logged_model(model_id)
    (finding,) = diagnose(Registry("kept"), stale_seconds=0)
    assert (finding.kind, finding.subject) == ("deleted model", "kept 1")


def test_a_version_whose_stored_model_was_deleted_is_not_promoted(store: Path) -> None:
    registry = Registry("gone")
    for index in range(2):
        add_version(store, f"gone-{index}", "gone")
    move_alias(registry, "champion", 2)
    move_alias(registry, "champion", 1)
    registry.client.delete_logged_model(registry.model_id(registry.show(2)))
    sentence = r"The logged model m-\w+ of gone 2 was deleted in MLflow, and `mlflow gc` deletes its files"
    for more in ({}, {"force": True, "reason": "now"}):
        with pytest.raises(GateError, match=sentence):
            registry.promote(2, **more)
    with pytest.raises(ReleaseError, match=sentence):
        registry.rollback(reason="slow")
    assert registry.aliases() == {"champion": 1}


def test_a_version_that_was_deleted_meanwhile_is_not_promoted(toy: Registry) -> None:
    with pytest.raises(RegistryError, match="toy 99 was deleted meanwhile: see `vitcifar versions --model-name toy`"):
        move_alias(toy, "champion", 99)
    assert toy.history() == []


def collect_garbage(registry: Registry) -> None:
    """`mlflow gc`, which reads the database itself."""
    uri = registry.client.tracking_uri
    if uri.startswith("sqlite"):
        done = subprocess.run([sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri], capture_output=True)
        assert done.returncode == 0, done.stderr
