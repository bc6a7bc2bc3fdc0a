"""Who moved an alias, when, from which version to which, and why: kept in the registry itself.

MLflow's aliases have no history. Each move is one tag of the registered model, under a key of its own: two people who
promote at once write two tags and lose nothing, and no tag's value grows.
"""

import dataclasses
import datetime
import getpass
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

PREFIX = "history/"
# Characters, so that a move with its gates fits into a tag: databases other than SQLite hold 5,000.
MAX_REASON, MAX_SENTENCE = 1000, 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """One move of an alias. `done` is false for one that was interrupted before the alias moved."""

    alias: str
    before: int | None
    after: int | None
    kind: str  # promote, rollback, drop
    reason: str
    who: str
    when: str  # UTC, ISO 8601
    forced: bool = False
    gates: tuple[dict[str, Any], ...] = ()
    done: bool = False

    @property
    def stamp(self) -> str:
        return self.when.replace("-", "").replace(":", "")

    def age(self) -> float:
        """Seconds since it was written down."""
        return (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(self.when)).total_seconds()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)


def new_event(alias: str, before: int | None, after: int | None, kind: str, reason: str, **more: Any) -> Event:
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    return Event(
        alias=alias,
        before=before,
        after=after,
        kind=kind,
        reason=reason[:MAX_REASON],
        who=whoami(),
        when=when.replace("+00:00", "Z"),
        **more,
    )


def new_key(event: Event) -> str:
    """A tag's name that sorts by time and that nobody else writes."""
    return f"{PREFIX}{event.alias}/{event.stamp}-{secrets.token_hex(4)}"


def whoami() -> str:
    """The name of the user, as the machine knows it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def keyed_events(tags: Mapping[str, str]) -> list[tuple[str, Event]]:
    """The moves among a registered model's tags with the keys they are kept under, in order of time."""
    found = []
    for key, value in tags.items():
        if not key.startswith(PREFIX):
            continue
        try:
            fields = json.loads(value)
            event = Event(**{**fields, "gates": tuple(fields.get("gates", ()))})
        except (ValueError, TypeError):
            continue  # not one of ours
        found.append((key, event))
    return sorted(found, key=lambda entry: (entry[1].when, entry[0]))


def read_events(tags: Mapping[str, str], alias: str | None = None) -> list[Event]:
    """The moves of one alias, or of all, among a registered model's tags, in order of time."""
    return [event for _, event in keyed_events(tags) if alias in (None, event.alias)]


def former_holders(events: Sequence[Event], holder: int | None) -> list[int]:
    """Versions that held the alias before the present holder, the latest last; a rollback takes its version back."""
    held: list[int] = []
    for event in events:
        if not event.done:
            continue
        if event.after is None:  # dropped: nobody holds it
            held.append(0)
            continue
        if event.kind == "rollback" and event.after in held:
            while held[-1] != event.after:
                held.pop()
        elif not held or held[-1] != event.after:
            if event.before is not None and not held:
                held.append(event.before)
            held.append(event.after)
    held = [number for number in held if number]
    return held[:-1] if held and held[-1] == holder else held
