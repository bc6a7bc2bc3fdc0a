"""The model registry: its versions, how they are found, verified and pulled.

A version is named by a spec: its number (3 or "v3"), an alias ("champion" or "@champion") or "latest".
"""

import builtins
import dataclasses
import datetime
import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from vitcifar.config import TrainConfig
from vitcifar.errors import RegistryError, ReleaseError, TrackingError, listed
from vitcifar.registry import records
from vitcifar.registry.aliases import Event, check_model_name, read_events
from vitcifar.registry.policy import Policy, read_policy
from vitcifar.registry.signing import check_signature
from vitcifar.release.artifacts import find_mismatch, has_root, root_of
from vitcifar.release.cache import cached_manifest, fetch, fetch_manifest
from vitcifar.release.manifest import Manifest, served_evaluation
from vitcifar.release.validation import is_digest
from vitcifar.tracking import reaching, store_option

if TYPE_CHECKING:
    from vitcifar.registry.gates import Promotion

NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
DIGEST_TAG = "release_digest"
BROKEN_TAG = "broken"  # on a version whose release the doctor found incomplete: what is wrong with it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """One registered version, as the registry lists it."""

    model_name: str
    number: int
    aliases: tuple[str, ...]
    status: str
    created: str  # UTC, ISO 8601
    run_id: str
    source: str
    tags: Mapping[str, str]  # and its records
    description: str = ""

    @property
    def digest(self) -> str | None:
        """The sha256 of its release.json; None for a version that vitcifar did not register."""
        return self.tags.get(DIGEST_TAG)

    @property
    def broken(self) -> str | None:
        """What is wrong with its files, if the doctor marked it as broken."""
        return self.tags.get(BROKEN_TAG)


def select(versions: Sequence[Version], spec: str | int) -> Version | None:
    """The version that a spec names; None without one. `latest` is the highest number not marked as broken."""
    name = str(spec).strip().removeprefix("@")
    number = int(name.lstrip("vV")) if re.fullmatch(r"[vV]?[0-9]{1,9}", name) else None
    if name == "latest":
        complete = [version.number for version in versions if version.broken is None]
        number = max(complete or [version.number for version in versions], default=None)
    return next((version for version in versions if version.number == number or name in version.aliases), None)


class Registry:
    """The versions of one model in the registry that MLflow is connected to (`tracking.connect`)."""

    def __init__(self, model_name: str) -> None:
        """Raises RegistryError for an invalid name; reads nothing."""
        check_model_name(model_name)
        self.model_name = model_name
        self.client = mlflow.MlflowClient()
        self.require_signature = "none"  # public keys that a command requires, see release/signature.py

    @property
    def model_option(self) -> str:
        """What a command needs to mean this model and store, with a space before it; nothing for the default ones."""
        name = "" if self.model_name == TrainConfig.model_name else f" --model-name {shlex.quote(self.model_name)}"
        return name + store_option()

    def list(self) -> Sequence[Version]:
        """Return every version, the newest first; none when the model does not exist. Raises TrackingError."""
        return self.read()[0]

    def show(self, spec: str | int) -> Version:
        """Return one version. Raises RegistryError, naming the versions and aliases there are."""
        return self.find(spec, self.list())

    def resolve(self, spec: str | int) -> int:
        """Return the number of one version. Raises RegistryError as `show` does."""
        return self.show(spec).number

    def aliases(self) -> dict[str, int]:
        """Return every alias with the version it points to. Raises RegistryError when the model does not exist."""
        return {alias: int(number) for alias, number in self._model().aliases.items()}

    def history(self, alias: str | None = None) -> Sequence[Event]:
        """Return every recorded move of one alias, or of all, the oldest first. Raises RegistryError."""
        return [*read_events(records.of_model(self._model().tags), alias).values()]

    def pull(self, spec: str | int, *, pytorch: bool = False, signed: bool = False) -> Manifest:
        """Download a version's release into the cache, verify every file and return its manifest.

        The PyTorch file is downloaded only with `pytorch`; a cached release is verified, not downloaded again. With
        `signed`, to serve it, it needs the signature that is required, if any. Raises RegistryError when the version
        does not exist, ReleaseError when its release is incomplete, changed or not signed.
        """
        return self.pull_version(self.show(spec), pytorch=pytorch, signed=signed)

    def promote(
        self,
        spec: str | int,
        alias: str = "champion",
        *,
        force: bool = False,
        reason: str = "",
        **limits: Any,
    ) -> "Promotion":
        """Point an alias to a version that passes every gate of the model's policy.

        `limits`, fields of `Policy`, replace the policy's; a gate with a looser one fails. The gates are recorded on
        the version. `force` overrides failed gates and needs a `reason`; an incomplete release cannot be forced. Raises
        GateError, the alias not moved, when a gate fails, and RegistryError when the alias was moved concurrently.
        """
        from vitcifar.registry import gates  # which imports this module

        return gates.promote(self, spec, alias, limits=limits, force=force, reason=reason)

    def policy(self) -> Policy:
        """What a promotion requires: the limits set for this model, else the defaults. Raises RegistryError."""
        return read_policy(self.tags())

    def tags(self) -> Mapping[str, str]:
        """The tags and records of the registered model; none when it does not exist. Raises TrackingError."""
        with reaching(mlflow.get_tracking_uri()):
            models = self.client.search_registered_models(f"name='{self.model_name}'")
        return records.of_model(models[0].tags) if models else {}

    def rollback(self, alias: str = "champion", *, to: str | int | None = None, reason: str) -> Event:
        """Point an alias back to its previous version, or to another one, `to`, that held it before.

        The release is verified first and `reason` is recorded. Raises RegistryError without a reason or without such a
        version, ReleaseError when its release is incomplete.
        """
        from vitcifar.registry.rollback import rollback  # which imports this module

        return rollback(self, alias, to, reason)

    def read(self) -> tuple[Sequence[Version], Mapping[str, str]]:
        """The versions, the newest first, and the tags of the registered model, each with its records (`records.py`).

        Reads the store twice.
        """
        found, stored = self.read_stored()
        versions = [dataclasses.replace(one, tags=records.of_version(one.number, one.tags, stored)) for one in found]
        return versions, records.of_model(stored)

    def read_stored(self) -> tuple[Sequence[Version], Mapping[str, str]]:
        """As `read`, with the tags as they are stored."""
        found = self.search(f"name='{self.model_name}'")
        if not found:
            return [], {}
        model = self._model()
        aliases = [(alias, int(number)) for alias, number in sorted(model.aliases.items())]
        versions = [
            dataclasses.replace(version, aliases=tuple(name for name, number in aliases if number == version.number))
            for version in found
        ]
        return sorted(versions, key=lambda version: version.number, reverse=True), model.tags

    def search(self, query: str) -> Sequence[Version]:
        """Every version, of any registered model and without its aliases, that MLflow's query finds."""
        found: builtins.list[ModelVersion] = []
        token = None
        with reaching(mlflow.get_tracking_uri()):
            while token != "":
                page = self.client.search_model_versions(query, page_token=token)
                found.extend(page)
                token = page.token or ""
        return [
            Version(
                model_name=entry.name,
                number=int(entry.version),
                aliases=(),
                status=str(entry.status),
                created=f"{datetime.datetime.fromtimestamp(entry.creation_timestamp // 1000, datetime.UTC):%FT%TZ}",
                run_id=entry.run_id or "",
                source=entry.source or "",
                tags=dict(entry.tags),
                description=entry.description or "",
            )
            for entry in found
        ]

    def find(self, spec: str | int, versions: Sequence[Version]) -> Version:
        """One of these versions. Raises RegistryError as `show` does."""
        if not versions:
            raise RegistryError(self._not_found())
        if version := select(versions, spec):
            return version
        name = str(spec).strip().removeprefix("@")
        holders = {alias: version.number for version in versions for alias in version.aliases}
        known = ", ".join(f"{alias} ({number})" for alias, number in sorted(holders.items())) or "none"
        numbers = ", ".join(str(version.number) for version in reversed(versions[:20]))
        near = difflib.get_close_matches(name, [*holders, "latest"], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise RegistryError(f"{self.model_name} has no version {name!r}: there are {numbers}; aliases: {known}.{hint}")

    def pull_version(self, version: Version, *, pytorch: bool = False, signed: bool = False) -> Manifest:
        """`pull` for a version that was read before."""
        if signed:
            check_signature(self, version)
        try:
            release = fetch(self.location(version), self.digest_of(version), pytorch=pytorch)
        except ReleaseError as error:  # of a file, which does not know the name of its model
            raise ReleaseError(str(error).replace("doctor`", f"doctor{self.model_option}`")) from error
        return dataclasses.replace(release, version=version.number)

    def manifest(self, version: Version) -> Manifest:
        """The release.json of a version, verified and cached, without its other files. Raises as `pull`."""
        digest = self.digest_of(version)
        release = cached_manifest(digest) or fetch_manifest(self.location(version), digest)
        return dataclasses.replace(release, version=version.number)

    def accuracy(self, version: Version) -> float | None:
        """The test accuracy in the release.json of a version; None if it is not recorded. Raises as `pull`."""
        return served_evaluation(self.manifest(version)).get("accuracy") if version.digest else None

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
            raise ReleaseError(
                f"{self.model_name} {version.number} is incomplete ({mismatch}): "
                f"run `vitcifar doctor{self.model_option}`."
            )

    def digest_of(self, version: Version) -> str:
        """The sha256 of its release.json. Raises ReleaseError for a version that vitcifar did not register."""
        if version.digest is None or not is_digest(version.digest):  # it names a folder of the cache
            name, tag = f"{self.model_name} {version.number}", "no valid tag" if version.digest else "no tag"
            raise ReleaseError(f"{name} was not released by vitcifar ({tag} {DIGEST_TAG}): choose another version.")
        return version.digest

    def location(self, version: Version) -> str:
        """The URI of a version's files in the artifact store."""
        with reaching(mlflow.get_tracking_uri()):
            return self.client.get_model_version_download_uri(version.model_name, str(version.number))

    def model_id(self, version: Version) -> str:
        """The id of the logged model that holds a version's files; "" without one.

        MLflow's copy of a version (`copy_model_version`) names the other version as its source.
        """
        if match := re.fullmatch(r"models:/(m-\w+)", version.source):
            return match[1]
        return next(iter(re.findall(r"/models/(m-\w+)(?![^/])", self.location(version))[::-1]), "")

    def tag(self, number: int, key: str, value: str | None) -> None:
        """Set a tag or a record of a version, or remove it with None."""
        if records.is_record(key, number):
            return records.replace(self, key, value, number)
        with reaching(mlflow.get_tracking_uri()):
            if value is None:
                self.client.delete_model_version_tag(self.model_name, str(number), key)
            else:
                self.client.set_model_version_tag(self.model_name, str(number), key, value)

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
            names = sorted(model.name for model in mlflow.search_registered_models())
        if self.model_name in names:
            return f"{self.model_name} has no version yet: `vitcifar train{self.model_option}` makes one."
        known = f"there are: {listed(names)}" if names else "the registry is empty, `vitcifar train` fills it"
        return f"There is no model {self.model_name!r} with a version in {mlflow.get_tracking_uri()}; {known}."
