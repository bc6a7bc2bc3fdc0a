"""What a killed process leaves behind: abandoned exports, stored models without a version, unfinished promotions."""

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.errors import ReleaseError
from vitcifar.registry.aliases import PREFIX, Event, keyed_events
from vitcifar.registry.registry import LINK_TAG, Registry, register
from vitcifar.registry.repair import Finding, finalize
from vitcifar.release.artifacts import download_file, find_mismatch, list_files, root_of
from vitcifar.release.build import LOGGED_NAME, MODEL_TAG, STAGING_PREFIX
from vitcifar.release.manifest import MANIFEST_FILE, Manifest, read_manifest, sha256_of

WAIT = "wait for the process that works on it; if there is none: --stale-seconds 0"


def missing_store(subject: str, folder: str) -> Finding:
    """No file of a release is in the store, and nothing shows that the store itself is there."""
    return Finding(
        kind="missing store",
        subject=subject,
        message=f"none of its files is in {folder}, which may not be mounted",
        fix="restore that folder; delete the release in MLflow if the folder cannot be restored",
    )


def abandoned_exports() -> Iterator[Finding]:
    """Temporary folders of exports whose process has ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{STAGING_PREFIX}[0-9]*-*"):
        process = folder.name.removeprefix(STAGING_PREFIX).partition("-")[0]
        if process.isdecimal() and folder.is_dir() and not _is_running(int(process)):
            yield Finding(
                kind="abandoned export",
                subject=str(folder),
                message="the process that wrote it has ended",
                fix="delete the folder",
                action=partial(shutil.rmtree, folder),
            )


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def orphaned_models(registry: Registry, stale_seconds: float) -> Iterator[Finding]:
    """Stored models without a version: registered if the release is complete and checked, deleted if not."""
    registered = {version.source for version in registry.list()}
    for model in _logged_models(registry):
        if f"models:/{model.model_id}" in registered or LINK_TAG in model.tags:
            continue  # with the tag it was a version once, which was deleted on purpose
        if _is_recent(model.creation_timestamp, stale_seconds):
            yield Finding(
                kind="unfinished model",
                subject=model.model_id,
                message=f"status {model.status}, not registered yet",
                fix=WAIT,
                waiting=True,
            )
            continue
        if model.status == LoggedModelStatus.READY and not list_files(get_artifact_repository(model.artifact_location)):
            yield missing_store(f"stored model {model.model_id}", root_of(model.artifact_location))
            continue
        release = _complete_release(model)
        if release is None:
            yield Finding(
                kind="orphaned model",
                subject=model.model_id,
                message=f"status {model.status}, an incomplete release without a version",
                fix="delete it",
                action=partial(registry.client.delete_logged_model, model.model_id),
            )
        else:
            yield Finding(
                kind="unregistered release",
                subject=model.model_id,
                message="a complete and checked release without a version",
                fix="register it as the next version",
                action=partial(register, release[0], model.model_id, release[1]),
            )


def _is_recent(timestamp_ms: int | None, stale_seconds: float) -> bool:
    return time.time() - (timestamp_ms or 0) / 1000 < stale_seconds


def _logged_models(registry: Registry) -> list[LoggedModel]:
    experiments = [entry.experiment_id for entry in registry.client.search_experiments()]
    found: list[LoggedModel] = []
    token = None
    while token != "":
        page = registry.client.search_logged_models(
            experiments,
            filter_string=f"name = '{LOGGED_NAME}' AND tags.{MODEL_TAG} = '{registry.model_name}'",
            page_token=token,
        )
        found.extend(page)
        token = page.token or ""
    return found


def _complete_release(model: LoggedModel) -> tuple[Manifest, str] | None:
    """The manifest of a stored model and its digest, if parity was checked and every file is there unchanged."""
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


def empty_model(registry: Registry, stale_seconds: float) -> Iterator[Finding]:
    """A registered model without a version, created for one that was never registered."""
    if registry.list():
        return
    try:
        model = registry.client.get_registered_model(registry.model_name)
    except MlflowException:
        return
    if not model.tags:
        recent = _is_recent(model.creation_timestamp, stale_seconds)
        yield Finding(
            kind="empty model",
            subject=registry.model_name,
            message="it has no version and no history",
            fix=WAIT if recent else "delete the name",
            waiting=recent,
            action=partial(_delete_if_empty, registry),
        )


def _delete_if_empty(registry: Registry) -> None:
    if not registry.list():  # a release may have been registered since
        registry.client.delete_registered_model(registry.model_name)


def unfinished_promotions(registry: Registry, stale_seconds: float) -> Iterator[Finding]:
    """Moves of an alias that were recorded and not marked as done."""
    versions, tags = registry.read()
    holders = {alias: version.number for version in versions for alias in version.aliases}
    events = keyed_events(tags)
    for key, event in events:
        if event.done:
            continue
        recent = event.age() < stale_seconds
        applied = event.after in (holders.get(event.alias), _next_before(events, event))
        state = "was moved" if applied else "was not moved"
        yield Finding(
            kind="unfinished promotion",
            subject=key.removeprefix(PREFIX),
            message=f"{event.alias} {state} to version {event.after}, and the record does not say so",
            fix=WAIT if recent else "complete the record" if applied else "delete the record",
            waiting=recent,
            action=partial(finalize, registry, key, event, applied),
        )


def _next_before(events: Sequence[tuple[str, Event]], event: Event) -> int | None:
    """The version that the event's alias pointed to when it was moved the next time."""
    later = [other for _, other in events if other.alias == event.alias and other.when > event.when]
    return later[0].before if later else None
