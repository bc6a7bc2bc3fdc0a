"""How the doctor repairs: it restores files from the cache, moves aliases back and finalizes records."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.errors import ReleaseError
from vitcifar.registry.aliases import Event, drop_alias, move_alias, previous_holders
from vitcifar.registry.registry import Registry
from vitcifar.registry.version import BROKEN_TAG, Version
from vitcifar.release.artifacts import Mismatch
from vitcifar.release.cache import cache_dir
from vitcifar.release.manifest import MANIFEST_FILE, Manifest, read_manifest, sha256_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem and its repair; without an `action` it needs a person."""

    kind: str
    subject: str
    message: str
    fix: str
    fixed: bool = False
    waiting: bool = False  # nothing to do now
    action: Callable[[], object] | None = dataclasses.field(default=None, repr=False, compare=False)


def cached_manifest(version: Version) -> Manifest | None:
    """The version's release.json from the cache of this machine."""
    path = cache_dir() / "releases" / str(version.digest) / MANIFEST_FILE
    return read_manifest(path) if path.is_file() and sha256_of(path) == version.digest else None


def can_restore(version: Version, mismatch: Mismatch) -> bool:
    """Whether the cache holds every missing or changed file as it was registered."""
    release = cached_manifest(version)
    if release is None:
        return not mismatch.missing_or_changed
    expected = {**release.files, MANIFEST_FILE: str(version.digest)}
    paths = {name: release.path(name) for name in mismatch.missing_or_changed}
    return all(path.is_file() and sha256_of(path) == expected[name] for name, path in paths.items())


def restore(registry: Registry, version: Version, mismatch: Mismatch) -> None:
    """Upload missing and changed files from the cache and delete unexpected ones.

    Raises ReleaseError when the stored release is still incomplete.
    """
    release = cached_manifest(version)
    repository = get_artifact_repository(registry.location(version))
    for name in mismatch.missing_or_changed:
        assert release is not None
        parent = Path(name).parent.as_posix()
        repository.log_artifact(str(release.path(name)), None if parent == "." else parent)  # type: ignore[no-untyped-call]
    for name in mismatch.unexpected:
        repository.delete_artifacts(name)  # type: ignore[no-untyped-call]
    registry.verify_store(version, release)


def mark_broken(registry: Registry, version: Version, why: str) -> None:
    """Move the aliases of an incomplete version back and mark the version as broken; nothing is deleted."""
    for alias in version.aliases:
        restore_previous(registry, alias, version.number)
    registry.tag(version.number, BROKEN_TAG, why)


def restore_previous(registry: Registry, alias: str, holder: int) -> None:
    """Point an alias to its most recent previous holder with a complete release; without one, drop the alias."""
    versions, events = {version.number: version for version in registry.list()}, registry.history(alias)
    for number in reversed(previous_holders(events, holder)):
        if number == holder or number not in versions:
            continue
        try:
            registry.verify_store(versions[number])
        except ReleaseError:
            continue
        move_alias(registry, alias, number, "rollback", f"doctor: version {holder} is not a complete release")
        return
    drop_alias(registry, alias, f"doctor: version {holder} is not a complete release, nor is any previous holder")


def finalize(registry: Registry, key: str, event: Event, applied: bool) -> None:
    """Complete the record of a move that was applied; delete that of one that was not."""
    if applied:
        done = dataclasses.replace(event, done=True)
        registry.client.set_registered_model_tag(registry.model_name, key, done.to_json())
    else:
        registry.client.delete_registered_model_tag(registry.model_name, key)
