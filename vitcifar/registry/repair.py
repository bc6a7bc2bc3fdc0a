"""Findings of the doctor, what a killed process leaves behind, and how a damaged version is fixed."""

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.errors import ReleaseError
from vitcifar.registry.aliases import PREFIX, Event, keyed_events, previous_holders
from vitcifar.registry.registry import BROKEN_TAG, LINK_TAG, Registry, Version, register
from vitcifar.release.artifacts import Mismatch, download_file, find_mismatch, list_files, root_of
from vitcifar.release.build import LOGGED_NAME, MODEL_TAG, STAGING_PREFIX
from vitcifar.release.cache import cache_dir
from vitcifar.release.manifest import MANIFEST_FILE, Manifest, read_manifest, sha256_of

WAIT = "wait for the process that works on it; if there is none: --settled-seconds 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be, and what repairs it."""

    kind: str
    subject: str
    message: str
    fix: str
    fixed: bool = False
    waiting: bool = False  # nothing to do about it now
    action: Callable[[], Any] | None = dataclasses.field(default=None, repr=False, compare=False)  # None: for a person


def store_away(subject: str, place: str) -> Finding:
    """A release of which the store has nothing, while nothing shows that the store itself is there."""
    return Finding(
        kind="store away",
        subject=subject,
        message=f"no file of it is in {place}, which may not be mounted",
        fix="bring that folder back; what is lost for good can be deleted in MLflow",
    )


def kept(version: Version) -> Manifest | None:
    """The version's release.json as the cache of this machine holds it."""
    path = cache_dir() / "releases" / str(version.digest) / MANIFEST_FILE
    return read_manifest(path) if path.is_file() and sha256_of(path) == version.digest else None


def can_restore(version: Version, mismatch: Mismatch) -> bool:
    """Whether the cache holds each file that was lost as it was registered."""
    release = kept(version)
    if release is None:
        return not mismatch.missing_or_changed
    expected = {**release.files, MANIFEST_FILE: str(version.digest)}
    paths = {name: release.path(name) for name in mismatch.missing_or_changed}
    return all(path.is_file() and sha256_of(path) == expected[name] for name, path in paths.items())


def restore(registry: Registry, version: Version, mismatch: Mismatch) -> None:
    """Put the cache's copies back into the store and take away what is not of the release.

    Raises ReleaseError when the store is still not as it was.
    """
    release = kept(version)
    repository = get_artifact_repository(registry.location(version))
    for name in mismatch.missing_or_changed:
        assert release is not None
        parent = Path(name).parent.as_posix()
        repository.log_artifact(str(release.path(name)), None if parent == "." else parent)
    for name in mismatch.unexpected:
        repository.delete_artifacts(name)
    registry.verify_store(version, release)


def put_aside(registry: Registry, version: Version, why: str) -> None:
    """Give back the aliases of a version that is no whole release and mark it; nothing is deleted."""
    for alias in version.aliases:
        give_back(registry, alias, version.number)
    registry.tag(version.number, BROKEN_TAG, why)


def give_back(registry: Registry, alias: str, holder: int) -> None:
    """Move an alias to the latest former holder that is a whole release; without one, no version holds it."""
    versions = {version.number: version for version in registry.list()}
    former = previous_holders(registry.history(alias), holder)
    for number in (number for number in reversed(former) if number != holder and number in versions):
        try:
            registry.verify_store(versions[number])
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


def unfinished_exports() -> Iterator[Finding]:
    """Folders of exports whose process is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{STAGING_PREFIX}[0-9]*-*"):
        process = folder.name.removeprefix(STAGING_PREFIX).partition("-")[0]
        if process.isdecimal() and folder.is_dir() and not Path(f"/proc/{process}").exists() and not _alive(process):
            yield Finding(
                kind="unfinished export",
                subject=str(folder),
                message="the process that wrote it is gone",
                fix="remove the folder",
                action=partial(shutil.rmtree, folder),
            )


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def unregistered(registry: Registry, settled_seconds: float) -> Iterator[Finding]:
    """Stored models that no version means: registered if they are a whole release, taken away if not."""
    meant = {version.source for version in registry.list()}
    for model in _logged_models(registry):
        if f"models:/{model.model_id}" in meant or LINK_TAG in model.tags:
            continue  # with the tag it was a version once, and somebody deleted that
        if _is_young(model, settled_seconds):
            yield Finding(
                kind="new model",
                subject=model.model_id,
                message=f"status {model.status}, no version means it yet",
                fix=WAIT,
                waiting=True,
            )
            continue
        if model.status == LoggedModelStatus.READY and not list_files(get_artifact_repository(model.artifact_location)):
            yield store_away(f"stored model {model.model_id}", root_of(model.artifact_location))
            continue
        release = _whole(model)
        if release is None:
            yield Finding(
                kind="half-stored model",
                subject=model.model_id,
                message=f"status {model.status}, not a whole release, and no version means it",
                fix="delete it",
                action=partial(registry.client.delete_logged_model, model.model_id),
            )
        else:
            yield Finding(
                kind="unregistered release",
                subject=model.model_id,
                message="a whole and proven release that was never registered",
                fix="register it as the next version",
                action=partial(register, release[0], model.model_id, release[1]),
            )


def _is_young(entry: Any, settled_seconds: float) -> bool:
    """Whether something that MLflow keeps was made less than so many seconds ago."""
    return time.time() - entry.creation_timestamp / 1000 < settled_seconds


def _logged_models(registry: Registry) -> list[Any]:
    experiments = [entry.experiment_id for entry in registry.client.search_experiments()]
    found: list[Any] = []
    token = None
    while True:
        page = registry.client.search_logged_models(
            experiments,
            filter_string=f"name = '{LOGGED_NAME}' AND tags.{MODEL_TAG} = '{registry.model_name}'",
            page_token=token,
        )
        found.extend(page)
        token = page.token
        if not token:
            return found


def _whole(model: Any) -> tuple[Manifest, str] | None:
    """The release that a stored model holds and its digest, when it was proven and every file is there as listed."""
    with tempfile.TemporaryDirectory(prefix="pulled-") as folder:
        path = Path(folder) / MANIFEST_FILE
        try:
            download_file(get_artifact_repository(model.artifact_location), MANIFEST_FILE, Path(folder))
            release, digest = read_manifest(path), sha256_of(path)
        except ReleaseError:
            return None
    if "parity" not in release.checks or find_mismatch(model.artifact_location, digest):
        return None
    return dataclasses.replace(release, folder=None), digest


def empty_names(registry: Registry, settled_seconds: float) -> Iterator[Finding]:
    """A registered model without a version: made for a version that never came."""
    if registry.list():
        return
    try:
        model = registry.client.get_registered_model(registry.model_name)
    except MlflowException:
        return
    if not model.tags:
        young = _is_young(model, settled_seconds)
        yield Finding(
            kind="empty model",
            subject=registry.model_name,
            message="it has no version and no history",
            fix=WAIT if young else "delete the name",
            waiting=young,
            action=partial(_delete_name, registry),
        )


def _delete_name(registry: Registry) -> None:
    if not registry.list():  # a release may have been registered since
        registry.client.delete_registered_model(registry.model_name)


def unfinished_moves(registry: Registry, settled_seconds: float) -> Iterator[Finding]:
    """Moves of an alias that were written down and not finished."""
    if not registry.list():
        return
    model = registry.client.get_registered_model(registry.model_name)
    events = keyed_events(model.tags)
    for key, event in events:
        if event.done:
            continue
        young = event.age() < settled_seconds
        came = registry.aliases().get(event.alias) == event.after or _next_holder(events, event) == event.after
        yield Finding(
            kind="unfinished promotion",
            subject=key.removeprefix(PREFIX),
            message=f"{event.alias} {'did' if came else 'did not'} come to {event.after}, the record says neither",
            fix=WAIT if young else "finish the record" if came else "remove the record",
            waiting=young,
            action=partial(settle, registry, key, event, came),
        )


def _next_holder(events: Sequence[tuple[str, Event]], event: Event) -> int | None:
    """The version that held the event's alias when it was moved the next time."""
    later = [other for _, other in events if other.alias == event.alias and other.when > event.when]
    return later[0].before if later else None
