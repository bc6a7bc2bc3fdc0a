"""How a damaged version is brought back from the cache, and an alias to a whole release."""

import dataclasses
from pathlib import Path

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.errors import ReleaseError
from vitcifar.release.bundle import RELEASE_FILE, Release, read_release, sha256_of
from vitcifar.release.history import Event, former_holders
from vitcifar.release.pull import cache_dir
from vitcifar.release.registry import BROKEN_TAG, Registry, Version
from vitcifar.release.store import Damage


def kept(version: Version) -> Release | None:
    """The version's release.json as the cache of this machine holds it."""
    path = cache_dir() / "releases" / str(version.digest) / RELEASE_FILE
    return read_release(path) if path.is_file() and sha256_of(path) == version.digest else None


def can_restore(version: Version, damage: Damage) -> bool:
    """Whether the cache holds each file that was lost as it was registered."""
    release = kept(version)
    if release is None:
        return not damage.lost
    expected = {**release.files, RELEASE_FILE: str(version.digest)}
    paths = {name: release.path(name) for name in damage.lost}
    return all(path.is_file() and sha256_of(path) == expected[name] for name, path in paths.items())


def restore(registry: Registry, version: Version, damage: Damage) -> None:
    """Put the cache's copies back into the store and take away what is not of the release.

    Raises ReleaseError when the store is still not as it was.
    """
    release = kept(version)
    repository = get_artifact_repository(registry.location(version))
    for name in damage.lost:
        assert release is not None
        parent = Path(name).parent.as_posix()
        repository.log_artifact(str(release.path(name)), None if parent == "." else parent)
    for name in damage.strange:
        repository.delete_artifacts(name)
    registry.check_store(version, release)


def put_aside(registry: Registry, version: Version, why: str) -> None:
    """Give back the aliases of a version that is no whole release and mark it; nothing is deleted."""
    for alias in version.aliases:
        give_back(registry, alias, version.number)
    registry.tag(version.number, BROKEN_TAG, why)


def give_back(registry: Registry, alias: str, holder: int) -> None:
    """Move an alias to the latest former holder that is a whole release; without one, no version holds it."""
    versions = {version.number: version for version in registry.versions()}
    former = former_holders(registry.history(alias), holder)
    for number in (number for number in reversed(former) if number != holder and number in versions):
        try:
            registry.check_store(versions[number])
        except ReleaseError:
            continue
        registry.move(alias, number, "rollback", f"doctor: version {holder} is not a whole release")
        return
    registry.drop_alias(alias, f"doctor: version {holder} is not a whole release, and no former holder is")


def settle(registry: Registry, key: str, event: Event, came: bool) -> None:
    """Finish the record of a move that came about; remove that of one that did not."""
    if came:
        done = dataclasses.replace(event, done=True)
        registry.client.set_registered_model_tag(registry.model_name, key, done.to_json())
    else:
        registry.client.delete_registered_model_tag(registry.model_name, key)
