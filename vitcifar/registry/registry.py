"""The registry: which versions there are, which one an alias means, and how it came to mean it."""

import contextlib
import dataclasses
import datetime
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException

from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits
from vitcifar.errors import ConfigError, RegistryError, ReleaseError, TrackingError
from vitcifar.registry.aliases import (
    Event,
    check_alias,
    check_model_name,
    new_event,
    new_key,
    parse_uri,
    previous_holders,
    read_events,
)
from vitcifar.release.artifacts import find_mismatch, has_root, root_of
from vitcifar.release.build import build_release
from vitcifar.release.cache import fetch
from vitcifar.release.manifest import Manifest, served_evaluation
from vitcifar.tracking import reaching

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

DIGEST_TAG = "release_digest"
LINK_TAG = "mlflow.modelVersions"  # MLflow's own: its page of a logged model shows the versions
BROKEN_TAG = "broken"  # on a version that the doctor found not to be a whole release: in what
__all__ = ["Registry", "Version", "check_alias", "check_model_name", "latest_number", "parse_uri"]

NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


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
    tags: Mapping[str, str]

    @property
    def digest(self) -> str | None:
        return self.tags.get(DIGEST_TAG)

    @property
    def release_id(self) -> str | None:
        return self.tags.get("release_id")

    @property
    def broken(self) -> str | None:
        """In what it is not a whole release, when the doctor found that."""
        return self.tags.get(BROKEN_TAG)

    @property
    def fingerprint(self) -> str | None:
        return self.tags.get("fingerprint")

    @property
    def test_accuracy(self) -> float | None:
        return float(self.tags["test_accuracy"]) if "test_accuracy" in self.tags else None


def latest_number(versions: Sequence[Version]) -> int | None:
    """What `latest` means among versions: the highest number that the doctor did not put aside."""
    whole = [version.number for version in versions if version.broken is None]
    return max(whole or [version.number for version in versions], default=None)


class Registry:
    """The versions of one model in the registry that MLflow points at (`tracking.connect`)."""

    def __init__(self, model_name: str) -> None:
        check_model_name(model_name)
        self.model_name = model_name
        self.client = mlflow.MlflowClient()

    def list(self) -> Sequence[Version]:
        """Every version with its aliases, the newest first; none when the model is not there."""
        with reaching(mlflow.get_tracking_uri()):
            found: list[Any] = []
            token = None
            while True:
                page = self.client.search_model_versions(f"name='{self.model_name}'", page_token=token)
                found.extend(page)
                token = page.token
                if not token:
                    break
            aliases = self.aliases() if found else {}
        return sorted((self._version(entry, aliases) for entry in found), key=lambda v: v.number, reverse=True)

    def aliases(self) -> dict[str, int]:
        """Every alias and the version that holds it. Raises RegistryError when the model is not there."""
        with reaching(mlflow.get_tracking_uri()):
            return {alias: int(number) for alias, number in self._model().aliases.items()}

    def resolve(self, spec: str | int) -> int:
        """A version's number, an alias, or `latest` -> the number. Raises RegistryError listing what there is."""
        versions = self.list()
        numbers = {version.number for version in versions}
        holders = {alias: version.number for version in versions for alias in version.aliases}
        word = str(spec).strip().removeprefix("@")
        if word == "latest" and (number := latest_number(versions)) is not None:
            return number
        if re.fullmatch(r"[vV]?[0-9]{1,9}", word) and int(word.lstrip("vV")) in numbers:
            return int(word.lstrip("vV"))
        if word in holders:
            return holders[word]
        raise RegistryError(self._not_there(word, sorted(numbers), holders))

    def show(self, spec: str | int) -> Version:
        """One version. Raises RegistryError when it is not there."""
        number = self.resolve(spec)
        return next(version for version in self.list() if version.number == number)

    def pull(self, spec: str | int, *, pytorch: bool = False) -> Manifest:
        """Bring a version's release into the cache, verified byte by byte; `pytorch` brings the pt2 as well.

        Raises RegistryError when there is no such version, ReleaseError when it is not a whole release.
        """
        version = self.show(spec)
        release = fetch(self.location(version), self.digest_of(version), pytorch=pytorch)
        return dataclasses.replace(release, version=version.number)

    def verify_store(self, version: Version, known: Manifest | None = None) -> None:
        """Hold every file in the store against its hash, past the cache.

        Raises ReleaseError naming the damaged, TrackingError when the store does not answer.
        """
        location = self.location(version)
        mismatch = find_mismatch(location, self.digest_of(version), known)
        if mismatch.empty and not has_root(location):
            raise TrackingError(f"The store has no folder {root_of(location)}: bring it back (is it mounted?).")
        if mismatch:
            raise ReleaseError(
                f"{self.model_name} {version.number} is not a whole release ({mismatch}): run `vitcifar doctor`."
            )

    def digest_of(self, version: Version) -> str:
        """The digest that a version was given. Raises ReleaseError for a version that is not one of ours."""
        if version.digest is None:
            raise ReleaseError(
                f"{self.model_name} {version.number} was not released by vitcifar (it has no tag {DIGEST_TAG}): "
                "choose another version."
            )
        return version.digest

    def location(self, version: Version) -> str:
        """Where the store keeps a version's files."""
        with reaching(mlflow.get_tracking_uri()):
            return self.client.get_model_version_download_uri(self.model_name, str(version.number))

    @staticmethod
    def pull_uri(uri: str, *, pytorch: bool = False) -> Manifest:
        """Like `pull`, for models:/NAME/VERSION or models:/NAME@ALIAS."""
        name, spec = parse_uri(uri)
        return Registry(name).pull(spec, pytorch=pytorch)

    @staticmethod
    def state_dict(uri: str) -> dict[str, Any]:
        """The weights of a release, to start training from: named as those of the network, loaded with pickle off."""
        from vitcifar.release.load import load_weights

        return load_weights(Registry.pull_uri(uri, pytorch=True))

    def promote(self, spec: str | int, alias: str = "champion", *, reason: str = "") -> Event:
        """Let an alias mean this version; who, when, from which one and why is recorded.

        The release is verified first: no alias ever points at less than a whole one. Raises VitCifarError.
        """
        check_alias(alias)
        version = self.show(spec)
        self.verify_store(version)
        return self.move(alias, version.number, "promote", reason)

    def rollback(self, alias: str = "champion", *, to: str | int | None = None, reason: str) -> Event:
        """Give an alias back to the version that held it before, or to `to`; recorded like a promotion.

        Raises RegistryError without a reason or without such a version, ReleaseError when it is not whole.
        """
        check_alias(alias)
        if not reason.strip():
            raise RegistryError("A rollback needs a reason: add --reason.")
        holder = self.aliases().get(alias)
        former = self.previous(alias)
        if to is None and not former:
            gone = previous_holders(self.history(alias), holder)
            was = f"Version {gone[-1]}, which" if gone else "No version"
            raise RegistryError(
                f"{was} held {alias!r} of {self.model_name} before {holder or 'now'}{', is gone' if gone else ''}: "
                f"type vitcifar promote VERSION --alias {alias}."
            )
        version = self.show(former[-1] if to is None else to)
        if version.number not in {number for event in self.history(alias) for number in (event.before, event.after)}:
            raise RegistryError(
                f"{self.model_name} {version.number} never held {alias!r}, which is no way around the gates: "
                f"type vitcifar promote {version.number} --alias {alias}."
            )
        self.verify_store(version)
        return self.move(alias, version.number, "rollback", reason, expected=holder)

    def previous(self, alias: str) -> Sequence[int]:
        """Versions that held an alias before the one that holds it now and are still there, the latest last."""
        versions = self.list()
        holder = next((version.number for version in versions if alias in version.aliases), None)
        there = {version.number for version in versions} - {holder}
        return [number for number in previous_holders(self.history(alias), holder) if number in there]

    def history(self, alias: str | None = None) -> Sequence[Event]:
        """Every recorded move of an alias, or of all, the oldest first."""
        with reaching(mlflow.get_tracking_uri()):
            return read_events(self._model().tags, alias)

    def move(
        self,
        alias: str,
        number: int,
        kind: str,
        reason: str,
        *,
        expected: int | EllipsisType | None = ...,
        **more: Any,
    ) -> Event:
        """Give an alias to a version that was proven: record, move, record that it moved.

        `expected` is the version that must hold it until then (None = no version, ... = any). Raises RegistryError.
        """
        holder = self.aliases().get(alias)
        if expected is not ... and holder != expected:
            raise RegistryError(
                f"{alias!r} of {self.model_name} was moved from {expected or 'nothing'} to {holder or 'nothing'} by "
                "somebody else meanwhile: look at `vitcifar history` and try again."
            )
        event = new_event(alias, holder, number, kind, reason, **more)
        if holder == number:
            return dataclasses.replace(event, done=True)
        key = new_key(event)
        with reaching(mlflow.get_tracking_uri()):
            self.client.set_registered_model_tag(self.model_name, key, event.to_json())
            self._set_alias(alias, number)
            done = dataclasses.replace(event, done=True)
            self.client.set_registered_model_tag(self.model_name, key, done.to_json())
        if (now := self.aliases().get(alias)) != number:
            raise RegistryError(
                f"{alias!r} of {self.model_name} was moved to {now} by somebody else at the same moment: "
                "look at `vitcifar history` and promote again."
            )
        return done

    def _set_alias(self, alias: str, number: int) -> None:
        try:
            self.client.set_registered_model_alias(self.model_name, alias, str(number))
        except MlflowException as error:
            if "IntegrityError" not in str(error):
                raise
            # Somebody else made the same new alias at the same moment; now that it is there it can be moved.
            self.client.set_registered_model_alias(self.model_name, alias, str(number))

    def drop_alias(self, alias: str, reason: str) -> Event:
        """Take an alias away from whatever holds it; recorded like a promotion."""
        event = dataclasses.replace(new_event(alias, self.aliases().get(alias), None, "drop", reason), done=True)
        with reaching(mlflow.get_tracking_uri()):
            self.client.set_registered_model_tag(self.model_name, new_key(event), event.to_json())
            self.client.delete_registered_model_alias(self.model_name, alias)
        return event

    def delete(self, version: Version) -> None:
        """Delete a version that no alias means, and the stored model behind it if no other version has the same.

        Raises RegistryError when an alias came to it meanwhile.
        """
        versions = {other.number: other for other in self.list()}
        aliases = versions[version.number].aliases if version.number in versions else ()
        if aliases:
            raise RegistryError(f"{self.model_name} {version.number} holds {', '.join(aliases)} now: it stays.")
        with reaching(mlflow.get_tracking_uri()):
            self.client.delete_model_version(self.model_name, str(version.number))
            if any(other.source == version.source for other in versions.values() if other.number != version.number):
                return
            with contextlib.suppress(MlflowException):  # it went before
                self.client.delete_logged_model(version.source.removeprefix("models:/"))

    def tag(self, number: int, key: str, value: str) -> None:
        """Note something on a version."""
        with reaching(mlflow.get_tracking_uri()):
            self.client.set_model_version_tag(self.model_name, str(number), key, value)

    def untag(self, number: int, key: str) -> None:
        """Take such a note away."""
        with reaching(mlflow.get_tracking_uri()):
            self.client.delete_model_version_tag(self.model_name, str(number), key)

    def _model(self) -> Any:
        try:
            return self.client.get_registered_model(self.model_name)
        except MlflowException as error:
            if error.error_code in NOT_FOUND:
                raise RegistryError(self._not_there("", [], {})) from None
            raise

    def _version(self, entry: Any, aliases: Mapping[str, int]) -> Version:
        number = int(entry.version)
        created = datetime.datetime.fromtimestamp(entry.creation_timestamp / 1000, datetime.UTC)
        return Version(
            model_name=self.model_name,
            number=number,
            aliases=tuple(sorted(alias for alias, holder in aliases.items() if holder == number)),
            status=str(entry.status),
            created=created.isoformat(timespec="seconds").replace("+00:00", "Z"),
            run_id=entry.run_id or "",
            source=entry.source or "",
            tags=dict(entry.tags),
        )

    def _not_there(self, word: str, numbers: Sequence[int], holders: Mapping[str, int]) -> str:
        if not numbers:
            names = sorted(model.name for model in self.client.search_registered_models())
            known = f"there are: {', '.join(names)}" if names else "the registry is empty, `vitcifar train` fills it"
            return f"There is no model {self.model_name!r} with a version in {mlflow.get_tracking_uri()}; {known}."
        aliases = ", ".join(f"{alias} ({number})" for alias, number in sorted(holders.items())) or "none"
        listed = ", ".join(str(number) for number in numbers[-20:])
        near = difflib.get_close_matches(word, [*holders, "latest"], n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        return f"{self.model_name} has no version {word!r}: there are {listed}; aliases: {aliases}.{meant}"


def prune(registry: Registry, *, keep: int, dry_run: bool = True) -> list[Version]:
    """The versions that go when the newest `keep` stay, every one with an alias, and every one that a rollback of an
    alias would go to; without `dry_run` they are deleted (MLflow's own `mlflow gc` frees the room). Raises ConfigError.
    """
    if keep < 1:
        raise ConfigError(f"keep is {keep}: at least 1 version stays.")
    versions = registry.list()
    aliases = sorted({alias for version in versions for alias in version.aliases})
    wanted = {number for alias in aliases for number in registry.previous(alias)[-1:]}
    gone = [version for version in versions[keep:] if not version.aliases and version.number not in wanted]
    if not dry_run:
        for version in gone:
            registry.delete(version)
    return gone


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
    built = build_release(network, splits=splits, evaluation=evaluation, config=config, run_id=run_id, int8=int8)
    return register(built.manifest, built.model_id, built.digest)


def register(release: Manifest, model_id: str, digest: str) -> int:
    """Make the version, with its tags, in one step of the registry: it is there whole or not at all."""
    client = mlflow.MlflowClient()
    tags = {
        "release_digest": digest,
        "release_id": release.release_id,
        "fingerprint": release.fingerprint,
        "parity_max_logit_difference": str(release.checks["parity"]["max_logit_difference"]),
    }
    if "accuracy" in (score := served_evaluation(release)):
        tags["test_accuracy"] = str(score["accuracy"])
    with reaching(mlflow.get_tracking_uri()):
        try:
            client.create_registered_model(release.model_name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            release.model_name,
            f"models:/{model_id}",
            run_id=release.run_id,
            tags=tags,
            model_id=model_id,
            await_creation_for=0,
        )
        link(release.model_name, int(version.version), model_id)
    return int(version.version)


def link(model_name: str, number: int, model_id: str) -> None:
    """Let MLflow's page of a logged model show its version."""
    versions = json.dumps([{"name": model_name, "version": number}])
    mlflow.MlflowClient().set_logged_model_tags(model_id, {LINK_TAG: versions})
