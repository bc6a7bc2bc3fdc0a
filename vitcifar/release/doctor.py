"""Finds what a killed process or a damaged store left behind, and brings the registry back to whole releases.

Nothing here is half done: a release that is whole but was never registered is registered, what is not whole is taken
away, and an alias that means less than a whole release goes back to the version that held it before.
"""

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.errors import VitCifarError
from vitcifar.release.bundle import RELEASE_FILE, Release, read_release, sha256_of
from vitcifar.release.history import PREFIX, keyed_events
from vitcifar.release.mending import can_restore, give_back, kept, remove, restore, settle
from vitcifar.release.publish import LINK_TAG, LOGGED_NAME, MODEL_TAG, STAGING_PREFIX, link, register
from vitcifar.release.pull import damaged_files
from vitcifar.release.registry import Registry, Version
from vitcifar.tracking import reaching

SETTLED_SECONDS = 3600.0  # what is unfinished and younger counts as young


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be, and what repairs it."""

    kind: str
    subject: str
    sentence: str
    repair: str
    repaired: bool = False
    young: bool = False  # it may still be in the hands of a running process: left alone
    act: Callable[[], Any] = dataclasses.field(default=lambda: None, repr=False, compare=False)


def examine(registry: Registry, *, settled_seconds: float = SETTLED_SECONDS) -> list[Finding]:
    """Everything that is wrong, in the order in which it is to be repaired; changes nothing."""
    with reaching(mlflow.get_tracking_uri()):
        unregistered = list(_unregistered(registry, settled_seconds))
        return [
            *_staging(),
            *unregistered,
            *([] if unregistered else _empty(registry, settled_seconds)),
            *_unfinished(registry, settled_seconds),
            *_versions(registry),
            *_aliases(registry),
        ]


def repair(registry: Registry, *, settled_seconds: float = SETTLED_SECONDS) -> list[Finding]:
    """Repair everything that `examine` finds but what is young; returns what was found, marked as repaired or not."""
    done: list[Finding] = []
    for _ in range(3):  # a repair can bring up the next one: an alias on a version that was just found broken
        found = [finding for finding in examine(registry, settled_seconds=settled_seconds) if not _known(done, finding)]
        if not found:
            break
        for finding in found:
            if finding.young:
                done.append(finding)
                continue
            try:
                with reaching(mlflow.get_tracking_uri()):
                    finding.act()
                done.append(dataclasses.replace(finding, repaired=True))
            except (VitCifarError, OSError) as error:
                done.append(dataclasses.replace(finding, sentence=f"{finding.sentence}; not repaired: {error}"))
    return done


def _known(done: list[Finding], finding: Finding) -> bool:
    return any((old.kind, old.subject) == (finding.kind, finding.subject) for old in done)


def _staging() -> Iterator[Finding]:
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


def _unregistered(registry: Registry, settled_seconds: float) -> Iterator[Finding]:
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
                repair="wait for the process that stores it",
                young=True,
            )
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
            get_artifact_repository(model.artifact_location).download_artifacts(RELEASE_FILE, dst_path=folder)
            release, digest = read_release(path), sha256_of(path)
        except (VitCifarError, MlflowException, OSError):
            return None
    if "parity" not in release.proofs or damaged_files(model.artifact_location, digest):
        return None
    return dataclasses.replace(release, folder=None), digest


def _empty(registry: Registry, settled_seconds: float) -> Iterator[Finding]:
    """A registered model without a version: made for a version that never came."""
    if registry.versions():
        return
    try:
        model = registry.client.get_registered_model(registry.model_name)
    except MlflowException:
        return
    if not model.tags:
        yield Finding(
            kind="empty model",
            subject=registry.model_name,
            sentence="it has no version and no history",
            repair="delete the name",
            young=_is_young(model, settled_seconds),
            act=partial(_delete_name, registry),
        )


def _delete_name(registry: Registry) -> None:
    if not registry.versions():  # a release may have been registered since
        registry.client.delete_registered_model(registry.model_name)


def _unfinished(registry: Registry, settled_seconds: float) -> Iterator[Finding]:
    """Moves of an alias that were written down and not finished."""
    if not registry.versions():
        return
    model = registry.client.get_registered_model(registry.model_name)
    for key, event in keyed_events(model.tags):
        if event.done:
            continue
        came = registry.aliases().get(event.alias) == event.after
        yield Finding(
            kind="unfinished promotion",
            subject=key.removeprefix(PREFIX),
            sentence=f"{event.alias} {'did' if came else 'did not'} come to {event.after}, the record says neither",
            repair="finish the record" if came else "remove the record",
            young=event.age() < settled_seconds,
            act=partial(settle, registry, key, event, came),
        )


def _versions(registry: Registry) -> Iterator[Finding]:
    """Versions whose files are missing or changed, and those that MLflow's page does not link."""
    for version in registry.versions():
        if version.digest is None:
            continue
        name = f"{registry.model_name} {version.number}"
        damaged = damaged_files(registry.location(version), version.digest, kept(version))
        if damaged:
            yield _damaged(registry, version, name, damaged)
        model_id = version.source.removeprefix("models:/")
        if LINK_TAG not in registry.client.get_logged_model(model_id).tags:
            yield Finding(
                kind="unlinked version",
                subject=name,
                sentence="MLflow's page of the model does not show the version",
                repair="link it",
                act=partial(link, registry.model_name, version.number, model_id),
            )


def _damaged(registry: Registry, version: Version, name: str, damaged: list[str]) -> Finding:
    sentence = f"missing or changed in the store: {', '.join(damaged)}"
    if can_restore(version, damaged):
        return Finding(
            kind="damaged version",
            subject=name,
            sentence=sentence,
            repair="bring them back from the cache of this machine",
            act=partial(restore, registry, version, damaged),
        )
    return Finding(
        kind="broken version",
        subject=name,
        sentence=f"{sentence}; the cache of this machine has no whole copy",
        repair=f"give {', '.join(version.aliases)} back, delete the version"
        if version.aliases
        else "delete the version",
        act=partial(remove, registry, version),
    )


def _aliases(registry: Registry) -> Iterator[Finding]:
    """Aliases that by their history should be held and are not: MLflow drops them with the version, silently."""
    if not registry.versions():
        return
    held = registry.aliases()
    last = {event.alias: event for event in registry.history() if event.done}
    for alias, event in last.items():
        if event.after is not None and alias not in held:
            yield Finding(
                kind="dangling alias",
                subject=alias,
                sentence=f"it meant version {event.after}, which is gone",
                repair="give it to the version that held it before",
                act=partial(give_back, registry, alias, event.after),
            )
