"""One registered version as the registry lists it, and how versions are named: number, alias or `latest`."""

import dataclasses
import datetime
import difflib
import re
from collections.abc import Mapping, Sequence

from mlflow.entities.model_registry import ModelVersion

from vitcifar.errors import RegistryError

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
    tags: Mapping[str, str]

    @property
    def digest(self) -> str | None:
        """The sha256 of its release.json; None for a version that vitcifar did not register."""
        return self.tags.get(DIGEST_TAG)

    @property
    def release_id(self) -> str | None:
        return self.tags.get("release_id")

    @property
    def broken(self) -> str | None:
        """What is wrong with its files, if the doctor marked it as broken."""
        return self.tags.get(BROKEN_TAG)

    @property
    def fingerprint(self) -> str | None:
        return self.tags.get("fingerprint")

    @property
    def test_accuracy(self) -> float | None:
        return float(self.tags["test_accuracy"]) if "test_accuracy" in self.tags else None


def latest_number(versions: Sequence[Version]) -> int | None:
    """The version that `latest` names: the highest number not marked as broken."""
    complete = [version.number for version in versions if version.broken is None]
    return max(complete or [version.number for version in versions], default=None)


def find_version(model_name: str, versions: Sequence[Version], spec: str | int) -> Version:
    """The version that a spec names. Raises RegistryError, listing the versions and aliases there are."""
    name = str(spec).strip().removeprefix("@")
    number = int(name.lstrip("vV")) if re.fullmatch(r"[vV]?[0-9]{1,9}", name) else None
    if name == "latest":
        number = latest_number(versions)
    for version in versions:
        if version.number == number or name in version.aliases:
            return version
    holders = {alias: version.number for version in versions for alias in version.aliases}
    known = ", ".join(f"{alias} ({number})" for alias, number in sorted(holders.items())) or "none"
    numbers = ", ".join(str(version.number) for version in reversed(versions[:20]))
    near = difflib.get_close_matches(name, [*holders, "latest"], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise RegistryError(f"{model_name} has no version {name!r}: there are {numbers}; aliases: {known}.{hint}")


def to_version(entry: ModelVersion, aliases: Mapping[str, str]) -> Version:
    """MLflow's entry of a version, with the model's aliases."""
    created = datetime.datetime.fromtimestamp(entry.creation_timestamp / 1000, datetime.UTC)
    return Version(
        model_name=entry.name,
        number=int(entry.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(entry.version))),
        status=str(entry.status),
        created=created.isoformat(timespec="seconds").replace("+00:00", "Z"),
        run_id=entry.run_id or "",
        source=entry.source or "",
        tags=dict(entry.tags),
    )
