"""Finds what a killed process or a damaged store left behind, and brings the registry back to whole releases.

Nothing here is half done: a release that is whole but was never registered is registered, a version that is not whole
is mended or put aside, and an alias that means less than a whole release goes back to the version that held it before.
No version is deleted, and a store that does not answer is an error and not a loss.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import mlflow
from mlflow.exceptions import MlflowException

from vitcifar.errors import VitCifarError
from vitcifar.registry.registry import BROKEN_TAG, LINK_TAG, NOT_FOUND, Registry, Version, link
from vitcifar.registry.repair import (
    Finding,
    can_restore,
    empty_names,
    give_back,
    kept,
    put_aside,
    restore,
    store_away,
    unfinished_exports,
    unfinished_moves,
    unregistered,
)
from vitcifar.release.artifacts import Mismatch, find_mismatch, has_root, root_of
from vitcifar.tracking import reaching

SETTLED_SECONDS = 3600.0  # what is unfinished and younger may still be in the hands of a running process


def diagnose(registry: Registry, *, settled_seconds: float = SETTLED_SECONDS) -> list[Finding]:
    """Everything that is wrong, in the order in which it is to be fixed; changes nothing."""
    with reaching(mlflow.get_tracking_uri()):
        stored = list(unregistered(registry, settled_seconds))
        return [
            *unfinished_exports(),
            *stored,
            *([] if stored else empty_names(registry, settled_seconds)),
            *unfinished_moves(registry, settled_seconds),
            *_versions(registry),
            *_aliases(registry),
        ]


def repair(registry: Registry, *, settled_seconds: float = SETTLED_SECONDS) -> list[Finding]:
    """Repair everything that `diagnose` finds and can be fixed; returns what was found, marked as fixed or not."""
    done: list[Finding] = []
    for _ in range(3):  # a repair can bring up the next one: an alias on a version that was just found broken
        found = [
            finding for finding in diagnose(registry, settled_seconds=settled_seconds) if not _known(done, finding)
        ]
        if not found:
            break
        for finding in found:
            if finding.waiting or finding.action is None:
                done.append(finding)
                continue
            try:
                with reaching(mlflow.get_tracking_uri()):
                    finding.action()
                done.append(dataclasses.replace(finding, fixed=True))
            except (VitCifarError, OSError) as error:
                done.append(dataclasses.replace(finding, message=f"{finding.message}; not fixed: {error}"))
    return done


def _known(done: list[Finding], finding: Finding) -> bool:
    return any((old.kind, old.subject) == (finding.kind, finding.subject) for old in done)


def _versions(registry: Registry) -> Iterator[Finding]:
    """Versions whose files are missing or changed, and those that MLflow's page does not link."""
    ours = [version for version in registry.list() if version.digest is not None]
    damages = {
        version.number: find_mismatch(registry.location(version), str(version.digest), kept(version))
        for version in ours
    }
    answers = any(not mismatch.empty for mismatch in damages.values())
    for version in ours:
        mismatch, location = damages[version.number], registry.location(version)
        if mismatch.empty and not has_root(location, answers):
            yield store_away(f"{registry.model_name} {version.number}", root_of(location))
        elif mismatch:
            yield _damaged(registry, version, mismatch)
        elif version.broken:
            yield Finding(
                kind="mended version",
                subject=f"{registry.model_name} {version.number}",
                message=f"it was put aside ({version.broken}) and is whole again",
                fix="take the mark away",
                action=partial(registry.untag, version.number, BROKEN_TAG),
            )
        yield from _unlinked(registry, version)


def _unlinked(registry: Registry, version: Version) -> Iterator[Finding]:
    name, model_id = f"{registry.model_name} {version.number}", version.source.removeprefix("models:/")
    try:
        linked = LINK_TAG in registry.client.get_logged_model(model_id).tags
    except MlflowException as error:
        if error.error_code not in NOT_FOUND:
            raise
        yield Finding(
            kind="unkept version",
            subject=name,
            message="the stored model behind it was deleted in MLflow, and `mlflow gc` would take its files",
            fix="register it anew (vitcifar reproduce, vitcifar train) before anybody types mlflow gc",
        )
        return
    if not linked:
        yield Finding(
            kind="unlinked version",
            subject=name,
            message="MLflow's page of the model does not show the version",
            fix="link it",
            action=partial(link, registry.model_name, version.number, model_id),
        )


def _damaged(registry: Registry, version: Version, mismatch: Mismatch) -> Finding:
    name = f"{registry.model_name} {version.number}"
    if can_restore(version, mismatch):
        return Finding(
            kind="damaged version",
            subject=name,
            message=str(mismatch),
            fix="bring it back to what was registered, from the cache of this machine",
            action=partial(restore, registry, version, mismatch),
        )
    give = f"give {', '.join(version.aliases)} back and " if version.aliases else ""
    done = version.broken is not None and not version.aliases
    return Finding(
        kind="broken version",
        subject=name,
        message=f"{mismatch}; the cache of this machine has no whole copy",
        fix="it was put aside: vitcifar prune deletes it in its turn" if done else f"{give}put it aside",
        waiting=done,
        action=partial(put_aside, registry, version, str(mismatch)),
    )


def _aliases(registry: Registry) -> Iterator[Finding]:
    """Aliases on what is no release, and those that MLflow dropped, silently, with the version that held them."""
    versions = {version.number: version for version in registry.list()}
    if not versions:
        return
    held = registry.aliases()
    for alias, number in held.items():
        if versions[number].digest is None:
            yield Finding(
                kind="foreign holder",
                subject=alias,
                message=f"it means version {number}, which is no release of vitcifar",
                fix="give it to the version that held it before",
                action=partial(give_back, registry, alias, number),
            )
    last = {event.alias: event for event in registry.history() if event.done}
    for alias, event in last.items():
        if event.after is not None and event.after not in versions and alias not in held:
            yield Finding(
                kind="dangling alias",
                subject=alias,
                message=f"it meant version {event.after}, which is gone",
                fix="give it to the version that held it before",
                action=partial(give_back, registry, alias, event.after),
            )
