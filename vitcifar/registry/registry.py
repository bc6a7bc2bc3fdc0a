"""The model registry: its versions, how they are found, verified and pulled, and how a release becomes a version."""

import builtins
import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits
from vitcifar.errors import ConfigError, RegistryError, ReleaseError, TrackingError
from vitcifar.registry.aliases import (
    Event,
    check_alias,
    check_model_name,
    move_alias,
    parse_uri,
    read_events,
    rollback,
    rollback_target,
)
from vitcifar.registry.policy import Policy
from vitcifar.registry.version import DIGEST_TAG, Version, find_version, latest_number, to_version
from vitcifar.release.artifacts import find_mismatch, has_root, root_of
from vitcifar.release.build import build_release
from vitcifar.release.cache import fetch
from vitcifar.release.manifest import Manifest, served_evaluation
from vitcifar.tracking import reaching

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier
    from vitcifar.registry.gates import Promotion

LINK_TAG = "mlflow.modelVersions"  # MLflow's own: its page of a logged model shows the versions
NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
__all__ = ["Registry", "Version", "check_alias", "check_model_name", "latest_number", "parse_uri"]


class Registry:
    """The versions of one model in the registry that MLflow is connected to (`tracking.connect`).

    A version is named by a spec: its number (3 or "v3"), an alias ("champion" or "@champion") or "latest".
    """

    def __init__(self, model_name: str) -> None:
        """Raises RegistryError for an invalid name; reads nothing."""
        check_model_name(model_name)
        self.model_name = model_name
        self.client = mlflow.MlflowClient()

    def list(self) -> Sequence[Version]:
        """Return every version, the newest first; none when the model does not exist.

        Raises TrackingError when the store is unreachable.
        """
        return self.read()[0]

    def show(self, spec: str | int) -> Version:
        """Return one version.

        Raises RegistryError, naming the versions and aliases there are, when it does not exist.
        """
        return self.find(spec, self.list())

    def resolve(self, spec: str | int) -> int:
        """Return the number of one version. Raises RegistryError as `show` does."""
        return self.show(spec).number

    def aliases(self) -> dict[str, int]:
        """Return every alias with the version it points to. Raises RegistryError when the model does not exist."""
        return {alias: int(number) for alias, number in self._model().aliases.items()}

    def history(self, alias: str | None = None) -> Sequence[Event]:
        """Return every recorded move of one alias, or of all, the oldest first.

        Raises RegistryError when the model does not exist.
        """
        return read_events(self._model().tags, alias)

    def pull(self, spec: str | int, *, pytorch: bool = False) -> Manifest:
        """Download a version's release into the cache, verify every file and return its manifest.

        The PyTorch file is downloaded only with `pytorch`; a cached release is verified, not downloaded again.
        Raises RegistryError when the version does not exist, ReleaseError when its release is incomplete or changed.
        """
        return self.pull_version(self.show(spec), pytorch=pytorch)

    def promote(
        self,
        spec: str | int,
        alias: str = "champion",
        *,
        policy: Policy | None = None,
        force: bool = False,
        reason: str = "",
    ) -> "Promotion":
        """Point an alias to a version that passes every gate of `policy` (default: `Policy()`).

        The gates are recorded on the version. `force` overrides failed gates and needs a `reason`; an incomplete
        release cannot be forced. Raises GateError, the alias not moved, when a gate fails, and RegistryError when the
        alias was moved concurrently.
        """
        from vitcifar.registry import gates  # which imports this module

        return gates.promote(self, spec, alias, policy=policy, force=force, reason=reason)

    def rollback(self, alias: str = "champion", *, to: str | int | None = None, reason: str) -> Event:
        """Point an alias back to its previous version, or to another one, `to`, that held it before.

        The release is verified first and `reason` is recorded. Raises RegistryError without a reason or without such a
        version, ReleaseError when its release is incomplete.
        """
        return rollback(self, alias, to, reason)

    def move_alias(self, alias: str, number: int, *, reason: str = "") -> Event:
        """Point an alias to a version, recorded as a promotion, without verifying it and without gates.

        For tests and migrations; use `promote`. Raises RegistryError when the alias was moved concurrently.
        """
        return move_alias(self, alias, number, reason=reason)

    @staticmethod
    def pull_uri(uri: str, *, pytorch: bool = False) -> Manifest:
        """Like `pull`, for models:/NAME/VERSION or models:/NAME@ALIAS."""
        name, spec = parse_uri(uri)
        return Registry(name).pull(spec, pytorch=pytorch)

    @staticmethod
    def state_dict(uri: str) -> dict[str, Any]:
        """Return the network's weights in a release, to start training from; loaded without pickle."""
        from vitcifar.release.load import load_weights  # imports torch

        return load_weights(Registry.pull_uri(uri, pytorch=True))

    def read(self) -> tuple[Sequence[Version], Mapping[str, str]]:
        """The versions, the newest first, and the tags of the registered model, in two reads of the store."""
        with reaching(mlflow.get_tracking_uri()):
            found: builtins.list[ModelVersion] = []
            token = None
            while token != "":
                page = self.client.search_model_versions(f"name='{self.model_name}'", page_token=token)
                found.extend(page)
                token = page.token or ""
        if not found:
            return [], {}
        model = self._model()
        versions = [to_version(entry, model.aliases) for entry in found]
        return sorted(versions, key=lambda version: version.number, reverse=True), model.tags

    def find(self, spec: str | int, versions: Sequence[Version]) -> Version:
        """One of these versions. Raises RegistryError as `show` does."""
        if not versions:
            raise RegistryError(self._not_found())
        return find_version(self.model_name, versions, spec)

    def pull_version(self, version: Version, *, pytorch: bool = False) -> Manifest:
        """`pull` for a version that was read before."""
        release = fetch(self.location(version), self.digest_of(version), pytorch=pytorch)
        return dataclasses.replace(release, version=version.number)

    def verify_store(self, version: Version, known: Manifest | None = None) -> None:
        """Check the sha256 of every file in the store, past the cache.

        `known` is the manifest from the cache, for a release.json that was changed. Raises ReleaseError naming the
        missing, changed and unexpected files, TrackingError when the store is unreachable.
        """
        location = self.location(version)
        mismatch = find_mismatch(location, self.digest_of(version), known)
        if mismatch.empty and not has_root(location):
            raise TrackingError(f"The store has no folder {root_of(location)}: restore it (is it mounted?).")
        if mismatch:
            raise ReleaseError(f"{self.model_name} {version.number} is incomplete ({mismatch}): run `vitcifar doctor`.")

    def digest_of(self, version: Version) -> str:
        """The sha256 of its release.json. Raises ReleaseError for a version that vitcifar did not register."""
        if version.digest is None:
            raise ReleaseError(
                f"{self.model_name} {version.number} was not released by vitcifar (it has no tag {DIGEST_TAG}): "
                "choose another version."
            )
        return version.digest

    def location(self, version: Version) -> str:
        """The URI of a version's files in the artifact store."""
        with reaching(mlflow.get_tracking_uri()):
            return self.client.get_model_version_download_uri(self.model_name, str(version.number))

    def tag(self, number: int, key: str, value: str | None) -> None:
        """Set a tag of a version, or remove it with None."""
        with reaching(mlflow.get_tracking_uri()):
            if value is None:
                self.client.delete_model_version_tag(self.model_name, str(number), key)
            else:
                self.client.set_model_version_tag(self.model_name, str(number), key, value)

    def delete(self, version: Version) -> None:
        """Delete a version without an alias, and its logged model unless another version has the same.

        Raises RegistryError when an alias points to it by now.
        """
        others = {other.number: other for other in self.list()}
        current = others.pop(version.number, version)
        if current.aliases:
            raise RegistryError(
                f"{self.model_name} {version.number} is not deleted: {', '.join(current.aliases)} points to it now."
            )
        with reaching(mlflow.get_tracking_uri()):
            self.client.delete_model_version(self.model_name, str(version.number))
            if all(other.source != version.source for other in others.values()):
                with contextlib.suppress(MlflowException):  # already deleted
                    self.client.delete_logged_model(version.source.removeprefix("models:/"))

    def _model(self) -> RegisteredModel:
        with reaching(mlflow.get_tracking_uri()):
            try:
                return self.client.get_registered_model(self.model_name)
            except MlflowException as error:
                if error.error_code not in NOT_FOUND:
                    raise
                raise RegistryError(self._not_found()) from None

    def _not_found(self) -> str:
        with reaching(mlflow.get_tracking_uri()):
            names = sorted(model.name for model in self.client.search_registered_models())
        known = f"there are: {', '.join(names)}" if names else "the registry is empty, `vitcifar train` fills it"
        return f"There is no model {self.model_name!r} with a version in {mlflow.get_tracking_uri()}; {known}."


def prune(registry: Registry, *, keep: int, dry_run: bool = True) -> list[Version]:
    """The versions to delete: not among the newest `keep`, without an alias, and no rollback target of one.

    They are deleted unless `dry_run` (MLflow's own `mlflow gc` removes their files). Raises ConfigError.
    """
    if keep < 1:
        raise ConfigError(f"keep is {keep}: it must be at least 1.")
    versions, tags = registry.read()
    existing = {version.number for version in versions}
    targets = {
        rollback_target(read_events(tags, alias), version.number, existing)
        for version in versions
        for alias in version.aliases
    }
    unused = [version for version in versions[keep:] if not version.aliases and version.number not in targets]
    if not dry_run:
        for version in unused:
            registry.delete(version)
    return unused


def publish(
    network: "Classifier",
    *,
    splits: Splits,
    evaluation: Mapping[str, Any],
    config: TrainConfig,
    run_id: str,
    int8: bool = False,
) -> int:
    """Build a release of a trained network and register it; returns the version's number.

    Raises ReleaseError when a check fails: nothing is registered then.
    """
    check_model_name(config.model_name)
    return register(
        *build_release(network, splits=splits, evaluation=evaluation, config=config, run_id=run_id, int8=int8)
    )


def register(release: Manifest, model_id: str, digest: str) -> int:
    """Create the version with its tags in one request, so that it exists completely or not at all."""
    client = mlflow.MlflowClient()
    tags = {
        DIGEST_TAG: digest,
        "release_id": release.release_id,
        "fingerprint": release.fingerprint,
        "parity_max_logit_difference": str(release.checks["parity"]["max_logit_difference"]),
    }
    if "accuracy" in (score := served_evaluation(release)):
        tags["test_accuracy"] = str(score["accuracy"])
    source = {"source": f"models:/{model_id}", "run_id": release.run_id, "model_id": model_id}
    with reaching(mlflow.get_tracking_uri()):
        try:
            client.create_registered_model(release.model_name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(release.model_name, **source, tags=tags, await_creation_for=0)
        link(release.model_name, int(version.version), model_id)
    return int(version.version)


def link(model_name: str, number: int, model_id: str) -> None:
    """Make MLflow's page of a logged model show its version."""
    versions = json.dumps([{"name": model_name, "version": number}])
    mlflow.MlflowClient().set_logged_model_tags(model_id, {LINK_TAG: versions})
