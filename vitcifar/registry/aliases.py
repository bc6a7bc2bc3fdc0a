"""What a model and an alias may be called, and who moved an alias, when, from which version to which, and why.

MLflow's aliases have no history. Each move is one tag of the registered model, under a key of its own: two people who
promote at once write two tags and lose nothing, and no tag's value grows."""

import dataclasses
import datetime
import getpass
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from vitcifar.errors import RegistryError


def check_model_name(name: str) -> None:
    """Raises RegistryError for a name that MLflow or a models:/ address cannot hold."""
    if not re.fullmatch(r"[\w. -]{1,200}", name) or name.strip() != name:
        raise RegistryError(f"{name!r} cannot name a model: use letters, digits, spaces, '-', '_' and '.'.")


def check_alias(alias: str) -> None:
    """Raises RegistryError for an alias that could be taken for a number, and for MLflow's reserved ones."""
    if alias == "latest" or re.fullmatch(r"[vV]?\d+", alias) or not re.fullmatch(r"[A-Za-z_][\w-]{0,99}", alias):
        raise RegistryError(
            f"{alias!r} cannot be an alias: use a word of letters, digits, '-' and '_', such as challenger; `latest`, "
            "numbers and names such as v3 are reserved."
        )


def parse_uri(uri: str) -> tuple[str, str]:
    """models:/NAME/VERSION or models:/NAME@ALIAS -> name and what was asked for. Raises RegistryError."""
    match = re.fullmatch(r"models:/(?P<name>[^/@]+)[/@](?P<spec>[^/@]+)", uri)
    if match is None:
        raise RegistryError(
            f"{uri!r} is not the address of a version: type models:/vitcifar/3 or models:/vitcifar@champion."
        )
    return match["name"], match["spec"]


PREFIX = "history/"
# Characters, so that a move with its gates fits into a tag: databases other than SQLite hold 5,000.
MAX_REASON, MAX_MESSAGE = 1000, 400


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


def upgrade_gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded gate in today's names; vitcifar 0.1 wrote others."""
    names = {"asked": "required", "sentence": "message", "number": "value"}
    return {names.get(name, name): value for name, value in gate.items()}


def keyed_events(tags: Mapping[str, str]) -> list[tuple[str, Event]]:
    """The moves among a registered model's tags with the keys they are kept under, in order of time."""
    found = []
    for key, value in tags.items():
        if not key.startswith(PREFIX):
            continue
        try:
            fields = json.loads(value)
            event = Event(**{**fields, "gates": tuple(map(upgrade_gate, fields.get("gates", ())))})
        except (ValueError, TypeError):
            continue  # not one of ours
        found.append((key, event))
    return sorted(found, key=lambda entry: (entry[1].when, entry[0]))


def read_events(tags: Mapping[str, str], alias: str | None = None) -> list[Event]:
    """The moves of one alias, or of all, among a registered model's tags, in order of time."""
    return [event for _, event in keyed_events(tags) if alias in (None, event.alias)]


def previous_holders(events: Sequence[Event], holder: int | None) -> list[int]:
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
