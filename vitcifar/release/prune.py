"""Old versions that nobody asks for any more."""

from vitcifar.errors import ConfigError
from vitcifar.release.registry import Registry, Version


def prune(registry: Registry, *, keep: int, dry_run: bool = True) -> list[Version]:
    """The versions that go when the newest `keep` stay, and every one with an alias; without `dry_run` they are
    deleted with their files (MLflow's own `mlflow gc` frees the room). Raises ConfigError."""
    if keep < 1:
        raise ConfigError(f"keep is {keep}: at least 1 version stays.")
    gone = [version for version in registry.versions()[keep:] if not version.aliases]
    if not dry_run:
        for version in gone:
            registry.delete(version)
    return gone
