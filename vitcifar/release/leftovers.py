"""What a process leaves behind that was killed: exports, stored models without a version, moves half written down."""

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.errors import ReleaseError
from vitcifar.release.bundle import RELEASE_FILE, Release, read_release, sha256_of
from vitcifar.release.finding import WAIT, Finding, store_away
from vitcifar.release.history import PREFIX, Event, keyed_events
from vitcifar.release.mending import settle
from vitcifar.release.publish import LINK_TAG, LOGGED_NAME, MODEL_TAG, STAGING_PREFIX, register
from vitcifar.release.registry import Registry
from vitcifar.release.store import bring, find_damage, list_files, place_of


def unfinished_exports() -> Iterator[Finding]:
    """Folders of exports whose process is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{STAGING_PREFIX}[0-9]*-*"):
        process = folder.name.removeprefix(STAGING_PREFIX).partition("-")[0]
        if process.isdecimal() and folder.is_dir() and not Path(f"/proc/{process}").exists() and not _alive(process):
            yield Finding(
                kind="unfinished export",
                subject=str(folder),
                sentence="the process that wrote it is gone",
                repair="remove the folder",
                act=partial(shutil.rmtree, folder),
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
    meant = {version.source for version in registry.versions()}
    for model in _logged_models(registry):
        if f"models:/{model.model_id}" in meant or LINK_TAG in model.tags:
            continue  # with the tag it was a version once, and somebody deleted that
        if _is_young(model, settled_seconds):
            yield Finding(
                kind="new model",
                subject=model.model_id,
                sentence=f"status {model.status}, no version means it yet",
                repair=WAIT,
                left_alone=True,
            )
            continue
        if model.status == LoggedModelStatus.READY and not list_files(get_artifact_repository(model.artifact_location)):
            yield store_away(f"stored model {model.model_id}", place_of(model.artifact_location))
            continue
        release = _whole(model)
        if release is None:
            yield Finding(
                kind="half-stored model",
                subject=model.model_id,
                sentence=f"status {model.status}, not a whole release, and no version means it",
                repair="delete it",
                act=partial(registry.client.delete_logged_model, model.model_id),
            )
        else:
            yield Finding(
                kind="unregistered release",
                subject=model.model_id,
                sentence="a whole and proven release that was never registered",
                repair="register it as the next version",
                act=partial(register, release[0], model.model_id, release[1]),
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


def _whole(model: Any) -> tuple[Release, str] | None:
    """The release that a stored model holds and its digest, when it was proven and every file is there as listed."""
    with tempfile.TemporaryDirectory(prefix="pulled-") as folder:
        path = Path(folder) / RELEASE_FILE
        try:
            bring(get_artifact_repository(model.artifact_location), RELEASE_FILE, Path(folder))
            release, digest = read_release(path), sha256_of(path)
        except ReleaseError:
            return None
    if "parity" not in release.proofs or find_damage(model.artifact_location, digest):
        return None
    return dataclasses.replace(release, folder=None), digest


def empty_names(registry: Registry, settled_seconds: float) -> Iterator[Finding]:
    """A registered model without a version: made for a version that never came."""
    if registry.versions():
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
            sentence="it has no version and no history",
            repair=WAIT if young else "delete the name",
            left_alone=young,
            act=partial(_delete_name, registry),
        )


def _delete_name(registry: Registry) -> None:
    if not registry.versions():  # a release may have been registered since
        registry.client.delete_registered_model(registry.model_name)


def unfinished_moves(registry: Registry, settled_seconds: float) -> Iterator[Finding]:
    """Moves of an alias that were written down and not finished."""
    if not registry.versions():
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
            sentence=f"{event.alias} {'did' if came else 'did not'} come to {event.after}, the record says neither",
            repair=WAIT if young else "finish the record" if came else "remove the record",
            left_alone=young,
            act=partial(settle, registry, key, event, came),
        )


def _next_holder(events: Sequence[tuple[str, Event]], event: Event) -> int | None:
    """The version that held the event's alias when it was moved the next time."""
    later = [other for _, other in events if other.alias == event.alias and other.when > event.when]
    return later[0].before if later else None
