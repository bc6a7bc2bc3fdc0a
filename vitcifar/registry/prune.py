"""Which versions can be deleted: none that is in use, and no files that another registered model has too."""

import contextlib
import warnings

import mlflow
from mlflow.exceptions import MlflowException

from vitcifar.errors import ConfigError, RegistryError, ReleaseError
from vitcifar.registry.aliases import read_events, rollback_target
from vitcifar.registry.lock import alone
from vitcifar.registry.registry import NOT_FOUND, Registry, Version
from vitcifar.tracking import reaching


def prune(registry: Registry, *, keep: int) -> list[Version]:
    """The versions to delete: not among the newest `keep`, without an alias, and no rollback target of one.

    A version whose files another registered model uses is kept, with a warning. Raises ConfigError.
    """
    if keep < 1:
        raise ConfigError(f"keep is {keep}: it must be at least 1.")
    versions, tags = registry.read()
    existing = {version.number for version in versions}
    targets = {
        rollback_target(read_events(tags, alias).values(), version.number, existing)
        for version in versions
        for alias in version.aliases
    }
    unused = [version for version in versions[keep:] if not version.aliases and version.number not in targets]
    users = file_users(registry) if unused else {}
    for version in list(unused):
        same_files = users.get(registry.model_id(version), [])
        others = [user for user in sorted(same_files) if not user.startswith(f"{version.model_name} ")]
        if others:
            unused.remove(version)
            name = f"{version.model_name} {version.number}"
            warnings.warn(f"{name} is kept: its files are those of {', '.join(others)} too.", stacklevel=2)
    return unused


def delete(registry: Registry, version: Version) -> None:
    """Delete a version without an alias, and its logged model unless a version of any model uses its files; `mlflow gc`
    then removes the files.

    Raises RegistryError when an alias points to it by now.
    """
    name = f"{registry.model_name} {version.number}"
    model_id = registry.model_id(version)
    with alone(registry) as check_alone:
        if aliases := registry.show(version.number).aliases:
            raise RegistryError(f"{name} is not deleted: {', '.join(aliases)} points to it now.")
        used = {*file_users(registry).get(model_id, [])} - {name}
        check_alone()
        with reaching(mlflow.get_tracking_uri()):
            if model_id and not used:
                # First: prune finds a version again that a killed process left, but not files without a version.
                with contextlib.suppress(MlflowException):  # already deleted
                    registry.client.delete_logged_model(model_id)
            registry.client.delete_model_version(registry.model_name, str(version.number))


def file_users(registry: Registry) -> dict[str, list[str]]:
    """For each logged model, the versions of all registered models that use its files: `vitcifar 3`."""
    users: dict[str, list[str]] = {}
    for version in registry.search(""):
        users.setdefault(registry.model_id(version), []).append(f"{version.model_name} {version.number}")
    return users


def check_kept(registry: Registry, version: Version) -> None:
    """Raise ReleaseError when the logged model with a version's files was deleted: `mlflow gc` would delete them."""
    if not (model_id := registry.model_id(version)):
        return
    with reaching(mlflow.get_tracking_uri()):
        try:
            registry.client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code not in NOT_FOUND:
                raise
            raise ReleaseError(
                f"The logged model {model_id} of {version.model_name} {version.number} was deleted in MLflow, and "
                "`mlflow gc` deletes its files: train it again, or choose another version."
            ) from None
