"""Points an alias back to a version that held it before."""

from vitcifar.errors import RegistryError
from vitcifar.registry.aliases import (
    Event,
    check_alias,
    move_alias,
    previous_holders,
    read_events,
    rollback_target,
)
from vitcifar.registry.prune import check_kept
from vitcifar.registry.registry import Registry
from vitcifar.registry.signing import check_signature


def rollback(registry: Registry, alias: str, to: str | int | None, reason: str) -> Event:
    """See `Registry.rollback`. Reads the store seven times."""
    check_alias(alias)
    if not reason.strip():
        raise RegistryError("A rollback needs a reason: add --reason.")
    versions, tags = registry.read()
    holder = next((version.number for version in versions if alias in version.aliases), None)
    events = read_events(tags, alias).values()
    existing = {version.number for version in versions}
    if to is None and (to := rollback_target(events, holder, existing)) is None:
        deleted = previous_holders(events, holder)[-1:]
        found = f"Version {deleted[0]}, which held" if deleted else "No version held"
        raise RegistryError(
            f"{found} {alias!r} of {registry.model_name} before {holder or 'now'}{', was deleted' if deleted else ''}: "
            f"type vitcifar promote VERSION --alias {alias}{registry.model_option}."
        )
    version = registry.find(to, versions)
    if version.number not in {number for event in events for number in (event.before, event.after)}:
        raise RegistryError(
            f"{registry.model_name} {version.number} never held {alias!r}; rollback cannot bypass the gates: "
            f"type vitcifar promote {version.number} --alias {alias}{registry.model_option}."
        )
    registry.verify_store(version)
    check_kept(registry, version)
    check_signature(registry, version)
    return move_alias(registry, alias, version.number, "rollback", reason, expected=holder)
