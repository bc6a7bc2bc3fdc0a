"""The problems that the doctor knows, and how each is repaired."""

import dataclasses
import datetime
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vitcifar.errors import ReleaseError
from vitcifar.registry.aliases import Event, move_alias, previous_holders
from vitcifar.registry.registry import BROKEN_TAG, Registry, Version
from vitcifar.registry.signing import check_signature
from vitcifar.release.artifacts import Mismatch
from vitcifar.release.cache import cached_manifest
from vitcifar.release.manifest import MANIFEST_FILE, sha256_of

SAME_TIME = 60.0  # seconds between the records of moves that were made at once
Action = Callable[[], object]
WAIT = "wait for the process that works on it; if there is none: --stale-seconds 0"
PROBLEMS = {  # what is wrong, and the repair or what a person has to do
    "abandoned export": ("the process that wrote it has ended", "delete the folder"),
    "unfinished model": ("status {status}, not registered yet", WAIT),
    "orphaned model": ("status {status}, an incomplete release without a version", "delete it"),
    "unregistered release": ("a complete and checked release without a version", "register it as the next version"),
    "missing store": (
        "none of its files is in {folder}, which may not be mounted",
        "restore that folder; delete the release in MLflow if the folder cannot be restored",
    ),
    "empty model": ("it has no version and no history", "delete the name"),
    "unfinished promotion": ("{move}, and the record does not say so", "complete the record"),
    "parallel moves": (
        "{moves} were recorded from the same version, which one alone can have left",
        "record them one after the other",
    ),
    "abandoned lease": ("{who} wants to move aliases and may have ended", "remove it"),
    "incomplete version": ("{mismatch}", "restore it from the cache of this machine"),
    "broken version": ("{mismatch}; the cache of this machine has no complete copy", "mark it as broken"),
    "unreadable version": ("{problem}", "mark it as broken"),
    "changed tag": ("it is {value}, release.json says {recorded}", "set it as in release.json"),
    "restored version": ("it is marked as broken ({why}) and is complete again", "remove the mark"),
    "deleted model": (
        "its logged model was deleted in MLflow",
        "train another version before mlflow gc deletes its files",
    ),
    "unlinked version": ("MLflow's page of the logged model does not show the version", "link it"),
    "shown records": ("MLflow's pages show {number} records of an older vitcifar", "move them to hidden tags"),
    "unsigned alias": (
        "{problem}",
        "sign that version after a check, or point the alias to a signed one",
    ),
    "foreign alias": ("it points to version {number}, which is not of vitcifar", "point it to its previous version"),
    "dangling alias": ("it points to version {number}, which was deleted", "point it to its previous version"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem and its repair; without an `action` it needs a person."""

    kind: str
    subject: str
    message: str
    fix: str
    fixed: bool = False
    waiting: bool = False  # nothing to do now
    action: Action | None = dataclasses.field(default=None, repr=False, compare=False)


def find(
    kind: str, subject: str, action: Action | None = None, *, waiting: bool = False, fix: str = "", **details: object
) -> Finding:
    """A finding of a kind in PROBLEMS, `details` put into its message; `fix` replaces the usual one, or to wait."""
    message, usual = PROBLEMS[kind]
    message = message.format(**details)
    fix = fix or (WAIT if waiting else usual)
    return Finding(kind=kind, subject=subject, message=message, fix=fix, waiting=waiting, action=action)


def can_restore(version: Version, mismatch: Mismatch) -> bool:
    """Whether the cache holds every missing or changed file as it was registered."""
    release = cached_manifest(str(version.digest))
    if release is None:
        return not mismatch.missing_or_changed
    expected = {**release.files, MANIFEST_FILE: str(version.digest)}
    paths = {name: release.path(name) for name in mismatch.missing_or_changed}
    return all(path.is_file() and sha256_of(path) == expected[name] for name, path in paths.items())


def restore(registry: Registry, version: Version, mismatch: Mismatch) -> None:
    """Upload missing and changed files from the cache and delete unexpected ones.

    Raises ReleaseError when the stored release is still incomplete.
    """
    release = cached_manifest(str(version.digest))
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
    reason = f"doctor: version {holder} is not a complete release"
    for number in reversed(previous_holders(events, holder)):
        if number == holder or number not in versions:
            continue
        try:
            registry.verify_store(versions[number])
            check_signature(registry, versions[number])
        except ReleaseError:
            continue
        move_alias(registry, alias, number, "rollback", reason)
        return
    move_alias(registry, alias, None, "drop", f"{reason}, nor is any previous holder")


def parallel_moves(events: Mapping[str, Event], holder: int | None) -> list[dict[str, Event]]:
    """The moves of one alias that were recorded from the same version at once, corrected, by key and in order.

    Each starts where the one before it ended; the last one is that whose version the next move started from, or which
    the alias points to now. `events` are all of the alias, in order of time.
    """
    done = [(key, event) for key, event in events.items() if event.done]
    starts = [0, *(index + 1 for index, pair in enumerate(itertools.pairwise(done)) if not _are_parallel(*pair))]
    found = []
    for start, end in itertools.pairwise([*starts, len(done)]):
        if end - start > 1:
            then = done[end][1].before if end < len(done) else holder
            found.append(_in_a_row(done[start:end], then))
    return found


def _are_parallel(first: tuple[str, Event], second: tuple[str, Event]) -> bool:
    one, other = first[1], second[1]
    one_time, other_time = (datetime.datetime.fromisoformat(event.when) for event in (one, other))
    return one.before == other.before != one.after and (other_time - one_time).total_seconds() < SAME_TIME


def _in_a_row(moves: Sequence[tuple[str, Event]], then: int | None) -> dict[str, Event]:
    ordered = sorted(moves, key=lambda move: move[1].after == then)
    before, corrected = ordered[0][1].before, {}
    for (key, event), (_, in_time) in zip(ordered, moves, strict=True):
        corrected[key] = dataclasses.replace(event, before=before, when=in_time.when)
        before = event.after
    return corrected
