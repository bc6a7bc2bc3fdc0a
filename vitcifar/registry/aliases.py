"""Aliases: valid names, the recorded history of moves, and the operations that move an alias.

MLflow's aliases have no history. Each move is a record of the registered model (`records.py`), under a key of its own.
"""

import dataclasses
import datetime
import getpass
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Set
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import read_mlflow_creds

from vitcifar.config import TrainConfig
from vitcifar.errors import RegistryError
from vitcifar.registry import records
from vitcifar.registry.lock import alone
from vitcifar.registry.policy import Gate
from vitcifar.tracking import reaching

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry

PREFIX = "history/"
MAX_REASON = 1000  # characters, as for policy.MAX_MESSAGE
STAMP = str.maketrans("", "", "-:")  # a time as a part of a tag's name


def check_model_name(name: str) -> None:
    """Raises RegistryError for a name that MLflow or a models:/ URI cannot hold."""
    if len(name) > 200:
        raise RegistryError(f"The model's name has {len(name):,} characters: type --model-name with at most 200.")
    if not re.fullmatch(r"[\w. -]+", name) or name.strip() != name:
        raise RegistryError(f"{name!r} is not a valid model name: use letters, digits, spaces, '-', '_' and '.'.")


def create_model(client: mlflow.MlflowClient, name: str) -> None:
    """Create a registered model unless it exists."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def check_alias(alias: str) -> None:
    """Raises RegistryError for an alias that reads as a version number, and for MLflow's reserved ones."""
    if alias == "latest" or re.fullmatch(r"[vV]?\d+", alias) or not re.fullmatch(r"[A-Za-z_][\w-]{0,99}", alias):
        raise RegistryError(
            f"{alias!r} is not a valid alias: use letters, digits, '-' and '_'; `latest`, 3 and v3 are reserved."
        )


def parse_uri(uri: str) -> tuple[str, str]:
    """models:/NAME/VERSION or models:/NAME@ALIAS -> the name and the version or alias. Raises RegistryError."""
    match = re.fullmatch(r"models:/(?P<name>[^/@]+)[/@](?P<spec>[^/@]+)", uri)
    if match is None:
        raise RegistryError(f"{uri!r} is not the URI of a version: type models:/NAME/VERSION or models:/NAME@ALIAS.")
    return match["name"], match["spec"]


def resolve_names(config: TrainConfig) -> TrainConfig:
    """Check the names of model and alias. Weights and a teacher named by an alias get its version number, so that the
    recorded config always names the same ones. Raises RegistryError.
    """
    from vitcifar.registry.registry import Registry  # which imports this module

    check_model_name(config.model_name)
    if config.promote_to != "none":
        check_alias(config.promote_to)
    teacher = config.teacher
    if teacher != "none" and not teacher.startswith("models:/"):  # a version or alias of this model
        teacher = f"models:/{config.model_name}/{teacher.removeprefix('@')}"
    resolved: dict[str, Any] = {}
    for setting, uri in (("weights", config.weights), ("teacher", teacher)):
        if uri.startswith("models:/"):
            name, version = parse_uri(uri)
            resolved[setting] = f"models:/{name}/{Registry(name).resolve(version)}"
    return dataclasses.replace(config, **resolved)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """One move of an alias; `done` is false while the alias has not been moved yet."""

    alias: str
    before: int | None
    after: int | None
    kind: str  # promote, rollback, drop
    reason: str
    who: str
    when: str  # UTC, ISO 8601
    forced: bool = False
    gates: tuple[dict[str, Any], ...] = ()  # see policy.Gate.to_dict
    done: bool = False

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)


def new_event(alias: str, before: int | None, after: int | None, kind: str, reason: str, **more: Any) -> Event:
    """An event of now, by the current user."""
    return Event(alias=alias, before=before, after=after, kind=kind, **sign(reason), **more)


def sign(reason: str) -> dict[str, Any]:
    """Who records something, when (UTC, ISO 8601) and why."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"who": current_user(), "when": when, "reason": reason[:MAX_REASON]}


def current_user() -> str:
    """The user that MLflow's server authenticates, else the user of the operating system."""
    if mlflow.get_tracking_uri().startswith("http") and (name := read_mlflow_creds().username):
        return name
    try:
        import pwd  # getpass would believe the environment, where anybody can name another
    except ImportError:  # Windows
        return getpass.getuser()
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def new_key(prefix: str, when: str) -> str:
    """A unique tag name that sorts by time (UTC, ISO 8601)."""
    return f"{prefix}{when.translate(STAMP)}-{secrets.token_hex(4)}"


def read_events(tags: Mapping[str, str], alias: str | None = None) -> dict[str, Event]:
    """The events of one alias, or of all, recorded in a registered model's tags, by key and in order of time."""
    events: dict[str, Event] = {}
    for key, value in tags.items():
        if not key.startswith(PREFIX):
            continue
        try:
            fields = json.loads(value)
            gates = tuple(Gate.from_dict(gate).to_dict() for gate in fields.get("gates", ()))
            event = Event(**{**fields, "gates": gates})
        except (ValueError, TypeError, AttributeError):
            continue  # not written by vitcifar
        if alias in (None, event.alias):
            events[key] = event
    return dict(sorted(events.items(), key=lambda item: (item[1].when, item[0])))


def previous_holders(events: Iterable[Event], holder: int | None) -> list[int]:
    """Versions that an alias pointed to before `holder`, the most recent last.

    They form a stack: a promotion pushes its version, a rollback pops every version above its own, and dropping the
    alias pushes None.
    """
    stack: list[int | None] = []
    for event in events:
        if not event.done:
            continue
        if event.after is None:
            stack.append(None)
        elif event.kind == "rollback" and event.after in stack:
            while stack[-1] != event.after:
                stack.pop()
        elif stack[-1:] != [event.after]:
            if not stack and event.before is not None:  # the alias was set by another tool first
                stack.append(event.before)
            stack.append(event.after)
    versions = [number for number in stack if number is not None]
    return versions[:-1] if versions[-1:] == [holder] else versions


def move_alias(
    registry: "Registry",
    alias: str,
    number: int | None,
    kind: str = "promote",
    reason: str = "",
    *,
    expected: int | EllipsisType | None = ...,
    **more: Any,
) -> Event:
    """Point an alias to a verified version: record the move, move it, record that it is done. Checks no gate.

    Without a version the alias is removed. `expected` is the version that the alias must point to until then (None = no
    version, ... = any). Raises RegistryError when the alias was moved concurrently.
    """
    if number is not None:
        check_alias(alias)
    with alone(registry) as check_alone:
        holder = registry.aliases().get(alias)
        if expected is not ...:
            _require_holder(registry, alias, expected, holder)
        event = new_event(alias, holder, number, kind, reason, **more)
        done = dataclasses.replace(event, done=True)
        if number is not None and holder == number:
            return done
        key = new_key(f"{PREFIX}{alias}/", event.when)
        check_alone()
        with reaching(mlflow.get_tracking_uri()):
            records.write(registry, key, event.to_json())
            _set_alias(registry, alias, number, key)
            records.write(registry, key, done.to_json())
        _require_holder(registry, alias, number, registry.aliases().get(alias))
    return done


def _require_holder(registry: "Registry", alias: str, expected: int | None, holder: int | None) -> None:
    if holder != expected:
        moved = f"(from {expected or 'nothing'} to {holder or 'nothing'})"
        raise RegistryError(
            f"{alias!r} of {registry.model_name} was moved concurrently {moved}: see "
            f"`vitcifar history{registry.model_option}` and try again."
        )


def _set_alias(registry: "Registry", alias: str, number: int | None, key: str) -> None:
    """Raises RegistryError, without the record `key` of the move, when the version was deleted meanwhile."""
    if number is None:
        registry.client.delete_registered_model_alias(registry.model_name, alias)
        return
    try:
        registry.client.set_registered_model_alias(registry.model_name, alias, str(number))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            records.replace(registry, key, None)
            raise RegistryError(
                f"{registry.model_name} {number} was deleted meanwhile: see `vitcifar versions{registry.model_option}`."
            ) from error
        if "IntegrityError" not in str(error):
            raise
        # Another process created the same new alias at the same time; now that it exists it can be moved.
        registry.client.set_registered_model_alias(registry.model_name, alias, str(number))


def rollback_target(events: Iterable[Event], holder: int | None, existing: Set[int]) -> int | None:
    """The most recent previous holder of an alias that still exists; None without one."""
    targets = [number for number in previous_holders(events, holder) if number in existing and number != holder]
    return targets[-1] if targets else None
