"""Where the registry keeps its records: in tags that MLflow's pages do not show.

MLflow's pages hide the tags of a registered model whose name starts with `mlflow.`, but its list of versions shows
every tag of a version. So all records, those of a version too, are tags of the registered model, each under a key of
its own: concurrent writers write different tags and lose nothing. Other modules read them under their plain keys.
"""

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import mlflow

from vitcifar.registry.lock import alone
from vitcifar.registry.policy import Policy
from vitcifar.tracking import reaching

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry

HIDDEN = "mlflow.vitcifar."
OF_MODEL = ("history/", "policy/")
OF_VERSION = ("gates/", "approval/", "latency/", "latency_sha256/")
# A text for people, since the changes of the policy are hidden. A vitcifar that looks for them here cannot read it and
# stops, instead of promoting by the looser default policy.
POLICY_TAG = "policy/current"


def name_of(key: str, number: int | None = None) -> str:
    """The tag of the registered model that holds a record of the model, or of the version `number`."""
    return f"{HIDDEN}{key}" if number is None else f"{HIDDEN}{number}/{key}"


def is_record(key: str, number: int | None = None) -> bool:
    """Whether a plain key names a record; such a tag is shown, as an older vitcifar wrote it."""
    return key != POLICY_TAG and key.startswith(OF_MODEL if number is None else OF_VERSION)


def of_model(stored: Mapping[str, str]) -> dict[str, str]:
    """The tags of a registered model, its records under their plain keys."""
    plain = {key: value for key, value in stored.items() if not key.startswith(HIDDEN) and key != POLICY_TAG}
    hidden = {key.removeprefix(HIDDEN): value for key, value in stored.items() if key.startswith(HIDDEN)}
    return plain | {key: value for key, value in hidden.items() if is_record(key)}


def of_version(number: int, tags: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, str]:
    """The tags of a version with its records, which are in the tags `stored` of the registered model."""
    prefix = name_of("", number)
    return {**tags, **{key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}}


def write(registry: "Registry", key: str, value: str, number: int | None = None) -> None:
    """Write a new record of the model, or of the version `number`; see `replace` for one that may exist."""
    with reaching(mlflow.get_tracking_uri()):
        registry.client.set_registered_model_tag(registry.model_name, name_of(key, number), value)


def replace(registry: "Registry", key: str, value: str | None, number: int | None = None) -> None:
    """Replace a record, or remove it with None, also one that an older vitcifar wrote."""
    with reaching(mlflow.get_tracking_uri()):
        if value is None:
            registry.client.delete_registered_model_tag(registry.model_name, name_of(key, number))
        else:
            write(registry, key, value, number)
        _delete_shown(registry, key, number)


def hide(registry: "Registry") -> None:
    """Move the records of an older vitcifar, which MLflow's pages show, to hidden tags; none is lost at any moment.

    A move of an alias that is not done stays: the process that writes it may still be at work.
    """
    if not shown(registry):
        return
    client, name = registry.client, registry.model_name
    with alone(registry), reaching(mlflow.get_tracking_uri()):
        for key, value, number in shown(registry):
            if key.startswith("policy/"):
                set_policy_tag(registry, registry.policy())
            client.set_registered_model_tag(name, name_of(key, number), value)
            _delete_shown(registry, key, number)


def _delete_shown(registry: "Registry", key: str, number: int | None) -> None:
    if number is None:
        registry.client.delete_registered_model_tag(registry.model_name, key)
    else:
        registry.client.delete_model_version_tag(registry.model_name, str(number), key)


def shown(registry: "Registry") -> list[tuple[str, str, int | None]]:
    """The records that MLflow's pages show and `hide` would move: key, value, and the version they belong to.

    A value that was already copied is that of the copy, which only later writes can have changed.
    """
    versions, stored = registry.read_stored()
    found: list[tuple[str, str, int | None]] = [(key, value, None) for key, value in stored.items() if is_record(key)]
    for version in versions:
        tags = version.tags.items()
        found += [(key, value, version.number) for key, value in tags if is_record(key, version.number)]
    found = [(key, stored.get(name_of(key, number), value), number) for key, value, number in found]
    return [
        (key, value, number) for key, value, number in found if not (key.startswith("history/") and _is_open(value))
    ]


def _is_open(event: str) -> bool:
    with contextlib.suppress(ValueError, AttributeError):
        return not json.loads(event).get("done")
    return False  # not written by vitcifar, or cut off: moved as it is


def set_policy_tag(registry: "Registry", policy: Policy) -> None:
    """Show the limits that differ from the defaults; the tag also stops an older vitcifar, see POLICY_TAG."""
    registry.client.set_registered_model_tag(registry.model_name, POLICY_TAG, policy.summary)
