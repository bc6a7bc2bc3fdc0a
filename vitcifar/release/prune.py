"""Old versions that nobody asks for any more."""

from vitcifar.errors import ConfigError
from vitcifar.release.registry import Registry, Version


def prune(registry: Registry, *, keep: int, dry_run: bool = True) -> list[Version]:
    """The versions that go when the newest `keep` stay, every one with an alias, and every one that a rollback of an
    alias would go to; without `dry_run` they are deleted (MLflow's own `mlflow gc` frees the room). Raises ConfigError.
    """
    if keep < 1:
        raise ConfigError(f"keep is {keep}: at least 1 version stays.")
    versions = registry.versions()
    aliases = sorted({alias for version in versions for alias in version.aliases})
    wanted = {number for alias in aliases for number in registry.former(alias)[-1:]}
    gone = [version for version in versions[keep:] if not version.aliases and version.number not in wanted]
    if not dry_run:
        for version in gone:
            registry.delete(version)
    return gone
