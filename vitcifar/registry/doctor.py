"""Finds and repairs what a killed process or a damaged store left, until every alias points to a complete release.

A complete release without a version is registered; an incomplete version is restored from the cache or marked as
broken, its aliases moved back. No version is deleted, and an unreachable store is an error, not a loss.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import mlflow
from mlflow.exceptions import MlflowException

from vitcifar.errors import VitCifarError
from vitcifar.registry.aliases import read_events
from vitcifar.registry.orphans import (
    abandoned_exports,
    empty_model,
    missing_store,
    orphaned_models,
    unfinished_promotions,
)
from vitcifar.registry.registry import LINK_TAG, NOT_FOUND, Registry, link
from vitcifar.registry.repair import Finding, cached_manifest, can_restore, mark_broken, restore, restore_previous
from vitcifar.registry.version import BROKEN_TAG, Version
from vitcifar.release.artifacts import Mismatch, find_mismatch, has_root, root_of
from vitcifar.tracking import reaching

STALE_SECONDS = 3600.0  # younger unfinished work may belong to a running process
__all__ = ["STALE_SECONDS", "Finding", "diagnose", "repair"]


def diagnose(registry: Registry, *, stale_seconds: float = STALE_SECONDS) -> list[Finding]:
    """Find every problem, in the order in which to repair them; changes nothing. Raises TrackingError."""
    with reaching(mlflow.get_tracking_uri()):
        orphans = list(orphaned_models(registry, stale_seconds))
        return [
            *abandoned_exports(),
            *orphans,
            *([] if orphans else empty_model(registry, stale_seconds)),
            *unfinished_promotions(registry, stale_seconds),
            *_incomplete_versions(registry),
            *_invalid_aliases(registry),
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


def _incomplete_versions(registry: Registry) -> Iterator[Finding]:
    """Versions with missing, changed or unexpected files, and those that MLflow's page does not link."""
    versions = [version for version in registry.list() if version.digest is not None]
    locations = {version.number: registry.location(version) for version in versions}
    mismatches = {
        version.number: find_mismatch(locations[version.number], str(version.digest), cached_manifest(version))
        for version in versions
    }
    is_store_there = any(not mismatch.empty for mismatch in mismatches.values())
    for version in versions:
        name, mismatch, location = _name(version), mismatches[version.number], locations[version.number]
        if mismatch.empty and not has_root(location, is_store_there):
            yield missing_store(name, root_of(location))
        elif mismatch:
            yield _incomplete(registry, version, mismatch)
        elif version.broken:
            yield Finding(
                kind="restored version",
                subject=name,
                message=f"it is marked as broken ({version.broken}) and is complete again",
                fix="remove the mark",
                action=partial(registry.tag, version.number, BROKEN_TAG, None),
            )
        yield from _unlinked(registry, version)


def _name(version: Version) -> str:
    return f"{version.model_name} {version.number}"


def _unlinked(registry: Registry, version: Version) -> Iterator[Finding]:
    model_id = version.source.removeprefix("models:/")
    try:
        linked = LINK_TAG in registry.client.get_logged_model(model_id).tags
    except MlflowException as error:
        if error.error_code not in NOT_FOUND:
            raise
        yield Finding(
            kind="deleted model",
            subject=_name(version),
            message="the logged model behind it was deleted in MLflow, and `mlflow gc` would delete its files",
            fix="register it again (vitcifar reproduce, vitcifar train) before anyone runs mlflow gc",
        )
        return
    if not linked:
        yield Finding(
            kind="unlinked version",
            subject=_name(version),
            message="MLflow's page of the logged model does not show the version",
            fix="link it",
            action=partial(link, registry.model_name, version.number, model_id),
        )


def _incomplete(registry: Registry, version: Version, mismatch: Mismatch) -> Finding:
    if can_restore(version, mismatch):
        return Finding(
            kind="incomplete version",
            subject=_name(version),
            message=str(mismatch),
            fix="restore it from the cache of this machine",
            action=partial(restore, registry, version, mismatch),
        )
    marked = version.broken is not None and not version.aliases
    back = f"move {', '.join(version.aliases)} back and " if version.aliases else ""
    return Finding(
        kind="broken version",
        subject=_name(version),
        message=f"{mismatch}; the cache of this machine has no complete copy",
        fix="it is marked as broken: vitcifar prune will delete it" if marked else f"{back}mark it as broken",
        waiting=marked,
        action=partial(mark_broken, registry, version, str(mismatch)),
    )


def _invalid_aliases(registry: Registry) -> Iterator[Finding]:
    """Aliases on a version that vitcifar did not register, and those that MLflow dropped with their version."""
    versions, tags = registry.read()
    if not versions:
        return
    for version in versions:
        for alias in version.aliases if version.digest is None else ():
            yield _invalid_alias(registry, alias, version.number, "foreign alias", "which vitcifar did not register")
    existing, held = {version.number for version in versions}, {name for v in versions for name in v.aliases}
    last = {event.alias: event for event in read_events(tags) if event.done}
    for alias, event in last.items():
        if event.after is not None and event.after not in existing and alias not in held:
            yield _invalid_alias(registry, alias, event.after, "dangling alias", "which was deleted")


def _invalid_alias(registry: Registry, alias: str, number: int, kind: str, why: str) -> Finding:
    return Finding(
        kind=kind,
        subject=alias,
        message=f"it points to version {number}, {why}",
        fix="point it to its previous version",
        action=partial(restore_previous, registry, alias, number),
    )
