"""Finds and repairs what a killed process or a damaged store left, until every alias points to a complete release.

A complete release without a version is registered; an incomplete version is restored from the cache or marked as
broken, its aliases moved back. No version is deleted, and an unreachable store is an error, not a loss.
"""

import dataclasses
import datetime
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import mlflow
import psutil
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.errors import ReleaseError, VitCifarError
from vitcifar.registry import lock, records
from vitcifar.registry.aliases import PREFIX, Event, read_events
from vitcifar.registry.prune import file_users
from vitcifar.registry.registration import LINK_TAG, link, register
from vitcifar.registry.registry import BROKEN_TAG, NOT_FOUND, Registry, Version
from vitcifar.registry.repair import (
    Finding,
    can_restore,
    find,
    mark_broken,
    parallel_moves,
    restore,
    restore_previous,
)
from vitcifar.registry.signing import check_signature
from vitcifar.release.artifacts import Mismatch, download_file, find_mismatch, has_root, list_files, root_of
from vitcifar.release.build import MODEL_TAG, STAGING_PREFIX
from vitcifar.release.cache import cached_manifest
from vitcifar.release.manifest import MANIFEST_FILE, Manifest, index_tags, read_manifest, sha256_of
from vitcifar.tracking import reaching

STALE_SECONDS = 3600.0  # younger unfinished work may belong to a running process


def diagnose(registry: Registry, *, stale_seconds: float = STALE_SECONDS) -> list[Finding]:
    """Find every problem, in the order in which to repair them; changes nothing. Raises TrackingError."""
    with reaching(mlflow.get_tracking_uri()):
        orphans = list(_orphaned_models(registry, stale_seconds))
        return [
            *_abandoned_exports(),
            *orphans,
            *([] if orphans else _empty_model(registry, stale_seconds)),
            *_abandoned_leases(registry, stale_seconds),
            *_unfinished_promotions(registry, stale_seconds),
            *_parallel_moves(registry, stale_seconds),
            *_incomplete_versions(registry),
            *_invalid_aliases(registry),
            *_shown_records(registry),
        ]


def repair(registry: Registry, *, stale_seconds: float = STALE_SECONDS) -> list[Finding]:
    """Repair every problem that `diagnose` finds; returns the findings, each marked as fixed or not."""
    done: dict[tuple[str, str], Finding] = {}
    for _ in range(3):  # a repair can reveal the next problem: an alias on a version that was just marked as broken
        found = diagnose(registry, stale_seconds=stale_seconds)
        new = [finding for finding in found if (finding.kind, finding.subject) not in done]
        for finding in new:
            done[finding.kind, finding.subject] = _apply(finding)
        if not new:
            break
    return list(done.values())


def _apply(finding: Finding) -> Finding:
    if finding.waiting or finding.action is None:
        return finding
    try:
        with reaching(mlflow.get_tracking_uri()):
            finding.action()
    except (VitCifarError, OSError) as error:
        return dataclasses.replace(finding, message=f"{finding.message}; not fixed: {error}")
    return dataclasses.replace(finding, fixed=True)


def _abandoned_exports() -> Iterator[Finding]:
    """Temporary folders of exports whose process has ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{STAGING_PREFIX}[0-9]*-*"):
        process = folder.name.removeprefix(STAGING_PREFIX).partition("-")[0]
        if process.isdecimal() and folder.is_dir() and not psutil.pid_exists(int(process)):
            yield find("abandoned export", str(folder), partial(shutil.rmtree, folder))


def _orphaned_models(registry: Registry, stale_seconds: float) -> Iterator[Finding]:
    """Stored models without a version: registered if the release is complete and checked, deleted if not."""
    registered = file_users(registry)
    experiments = [entry.experiment_id for entry in mlflow.search_experiments()]
    ours = f"tags.{MODEL_TAG} = '{registry.model_name}'"
    for model in mlflow.search_logged_models(experiments, filter_string=ours, output_format="list"):
        name, status, location = model.model_id, model.status, model.artifact_location
        if name in registered or LINK_TAG in model.tags:
            continue  # with the tag it was a version once, which was deleted on purpose
        if _is_recent((model.creation_timestamp or 0) / 1000, stale_seconds):
            yield find("unfinished model", name, waiting=True, status=status)
        elif status == LoggedModelStatus.READY and not list_files(get_artifact_repository(location)):
            yield find("missing store", f"stored model {name}", folder=root_of(location))
        elif (release := _complete_release(model)) is None:
            yield find("orphaned model", name, partial(registry.client.delete_logged_model, name), status=status)
        else:
            yield find("unregistered release", name, partial(register, release[0], name, release[1]))


def _is_recent(timestamp: float, stale_seconds: float) -> bool:
    return time.time() - timestamp < stale_seconds


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


def _empty_model(registry: Registry, stale_seconds: float) -> Iterator[Finding]:
    """A registered model without a version, created for one that was never registered."""
    if registry.list():
        return
    try:
        model = registry.client.get_registered_model(registry.model_name)
    except MlflowException:
        return
    if not model.tags:
        recent = _is_recent((model.creation_timestamp or 0) / 1000, stale_seconds)
        yield find("empty model", registry.model_name, partial(_delete_if_empty, registry), waiting=recent)


def _delete_if_empty(registry: Registry) -> None:
    if not registry.list():  # a release may have been registered since
        registry.client.delete_registered_model(registry.model_name)


def _unfinished_promotions(registry: Registry, stale_seconds: float) -> Iterator[Finding]:
    """Moves of an alias that were recorded and not marked as done."""
    versions, tags = registry.read()
    holders = {alias: version.number for version in versions for alias in version.aliases}
    events = read_events(tags)
    for key, event in events.items():
        if event.done:
            continue
        later = [other.before for other in events.values() if other.alias == event.alias and other.when > event.when]
        applied = event.after in (holders.get(event.alias), *later[:1])  # the holder now, or at the next move
        action = partial(records.replace, registry, key, None)
        fix, move = "delete the record", f"{event.alias} was not moved to version {event.after}"
        if applied:
            done = dataclasses.replace(event, done=True).to_json()
            action = partial(records.replace, registry, key, done)
            fix, move = "complete the record", f"{event.alias} was moved to version {event.after}"
        recent = _is_recent(datetime.datetime.fromisoformat(event.when).timestamp(), stale_seconds)
        subject = key.removeprefix(PREFIX)
        yield find("unfinished promotion", subject, action, waiting=recent, fix="" if recent else fix, move=move)


def _abandoned_leases(registry: Registry, stale_seconds: float) -> Iterator[Finding]:
    """What processes left that were killed while they moved an alias on a server."""
    if not registry.list():
        return
    for key, value in lock.places(registry).items():
        recent = _is_recent(lock.written(value), stale_seconds)
        action = partial(registry.client.delete_registered_model_tag, registry.model_name, key)
        yield find("abandoned lease", key.removeprefix(lock.PREFIX), action, waiting=recent, who=lock.describe(value))


def _parallel_moves(registry: Registry, stale_seconds: float) -> Iterator[Finding]:
    """Moves of an alias from the same version: by an older vitcifar, or on a server that held up a process for long."""
    versions, tags = registry.read()
    holders = {alias: version.number for version in versions for alias in version.aliases}
    for alias in sorted({event.alias for event in read_events(tags).values()}):
        for moves in parallel_moves(read_events(tags, alias), holders.get(alias)):
            first = next(iter(moves.values()))
            recent = _is_recent(datetime.datetime.fromisoformat(first.when).timestamp(), stale_seconds)
            action = partial(_record, registry, moves)
            ends = [move.after or "nothing" for move in moves.values()]
            named = " and ".join(f"{first.before or 'nothing'} -> {end}" for end in ends)
            yield find("parallel moves", f"{alias}, {first.when[:19]}Z", action, waiting=recent, moves=named)


def _record(registry: Registry, events: Mapping[str, Event]) -> None:
    for key, event in events.items():
        records.replace(registry, key, event.to_json())


def _incomplete_versions(registry: Registry) -> Iterator[Finding]:
    """Versions with missing, changed or unexpected files, and those that MLflow's page does not link."""
    compared = []
    for version in registry.list():
        if version.digest is not None:
            location = registry.location(version)
            try:
                known = cached_manifest(version.digest)
                compared.append((version, location, find_mismatch(location, version.digest, known)))
            except ReleaseError as error:  # of a release.json that is as registered, and cannot be one of vitcifar
                yield _unreadable(registry, version, str(error).rstrip("."))
    is_store_there = any(not mismatch.empty for *_, mismatch in compared)
    for version, location, mismatch in compared:
        name = f"{version.model_name} {version.number}"
        if mismatch.empty and not has_root(location, is_store_there):
            yield find("missing store", name, folder=root_of(location))
        elif mismatch:
            yield _incomplete(registry, version, name, mismatch)
        elif version.broken:
            action = partial(registry.tag, version.number, BROKEN_TAG, None)
            yield find("restored version", name, action, why=version.broken)
        else:
            yield from _changed_tags(registry, version, name)
        yield from _unlinked(registry, version, name)


def _unreadable(registry: Registry, version: Version, problem: str) -> Finding:
    marked = version.broken is not None and not version.aliases
    fix = "it is marked as broken: promote others" if marked else ""
    action = partial(mark_broken, registry, version, problem)
    name = f"{version.model_name} {version.number}"
    return find("unreadable version", name, action, waiting=marked, fix=fix, problem=problem)


def _changed_tags(registry: Registry, version: Version, name: str) -> Iterator[Finding]:
    """Tags of a complete version that are not what its release.json says; nothing reads a number from them."""
    for key, recorded in index_tags(registry.manifest(version)).items():
        value = version.tags.get(key, recorded)
        if value != recorded and not (key == "test_accuracy" and value == str(registry.accuracy(version))):  # in 0.1
            action = partial(registry.tag, version.number, key, recorded)
            yield find("changed tag", f"{name}, {key}", action, value=value, recorded=recorded)


def _incomplete(registry: Registry, version: Version, name: str, mismatch: Mismatch) -> Finding:
    if can_restore(version, mismatch):
        action = partial(restore, registry, version, mismatch)
        return find("incomplete version", name, action, mismatch=mismatch)
    marked = version.broken is not None and not version.aliases
    back = f"move {', '.join(version.aliases)} back and " if version.aliases else ""
    prune = f"vitcifar prune --delete yes{registry.model_option}"
    fix = f"it is marked as broken: {prune} deletes it once it is old" if marked else f"{back}mark it as broken"
    action = partial(mark_broken, registry, version, str(mismatch))
    return find("broken version", name, action, waiting=marked, fix=fix, mismatch=mismatch)


def _unlinked(registry: Registry, version: Version, name: str) -> Iterator[Finding]:
    model_id = registry.model_id(version)
    try:
        linked = LINK_TAG in registry.client.get_logged_model(model_id).tags
    except MlflowException as error:
        if error.error_code not in NOT_FOUND:
            raise
        yield find("deleted model", name)
        return
    if not linked:
        yield find("unlinked version", name, partial(link, registry.model_name, version.number, model_id))


def _shown_records(registry: Registry) -> Iterator[Finding]:
    """Records of an older vitcifar, which MLflow's pages show as long tags."""
    if found := records.shown(registry):
        yield find("shown records", registry.model_name, partial(records.hide, registry), number=len(found))


def _invalid_aliases(registry: Registry) -> Iterator[Finding]:
    """Aliases on a version that vitcifar did not register, and those that MLflow dropped with their version."""
    versions, tags = registry.read()
    if not versions:
        return
    holders = {alias: version for version in versions for alias in version.aliases}
    existing = {version.number for version in versions}
    events = [event for event in read_events(tags).values() if event.done and event.alias not in holders]
    last = {event.alias: event.after for event in events}
    foreign = {alias: version.number for alias, version in holders.items() if version.digest is None}
    dangling = {alias: number for alias, number in last.items() if number and number not in existing}
    policy = registry.policy()
    for alias, version in holders.items():
        try:
            check_signature(registry, version, policy)
        except ReleaseError as error:
            yield find("unsigned alias", alias, problem=str(error).rstrip("."))
    for kind, aliases in (("foreign alias", foreign), ("dangling alias", dangling)):
        for alias, number in aliases.items():
            yield find(kind, alias, partial(restore_previous, registry, alias, number), number=number)
