"""Can a version be made again? Its recipe, and what came out different."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError, ReleaseError
from vitcifar.release.bundle import Release
from vitcifar.release.diff import Difference, compare_sections, flatten, metrics
from vitcifar.release.registry import Registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Present:
    """What there is to train with now: the fingerprint of the pictures, and the commit of the code."""

    fingerprint: str
    commit: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What training once more, with the recorded config and seed, came to."""

    fingerprint: str
    weights_sha256: str
    test: Mapping[str, Any]
    git: Mapping[str, Any]
    environment: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A version and its rebuilding; `same_weights` is the whole answer, the differences say why not."""

    version: int
    same_data: bool
    same_weights: bool
    differences: tuple[Difference, ...]


def recipe(release: Release) -> TrainConfig:
    """The recorded config, as it can be run again: nothing resumed, nothing promoted. Raises ReleaseError."""
    try:
        return TrainConfig(**{**release.config, "resume": "none", "promote_to": "none"})
    except (TypeError, ConfigError) as error:
        raise ReleaseError(
            f"The config of version {release.version} is of another vitcifar ({error}): "
            f"check out commit {release.git.get('commit') or 'not recorded'} and reproduce there."
        ) from error


def reproduce(
    registry: Registry,
    spec: str | int,
    *,
    look: Callable[[TrainConfig], Present],
    rebuild: Callable[[TrainConfig], Rebuilt],
) -> Reproduction:
    """Train a version's recipe again with `rebuild` and hold the outcome against what was recorded.

    `look` says what there is to train with. Raises ReleaseError before the training when the pictures are others, and
    warns when the code is.
    """
    release = registry.pull(spec)
    config = recipe(release)
    present = look(config)
    if present.fingerprint != release.fingerprint:
        raise ReleaseError(
            f"The pictures are not those that version {release.version} was made of: expected fingerprint "
            f"{release.fingerprint[:16]}…, got {present.fingerprint[:16]}…. Bring the pictures back and try again."
        )
    commit = release.git.get("commit")
    if commit != present.commit:
        warnings.warn(
            f"Version {release.version} was made with commit {commit or 'not recorded'}, this is "
            f"{present.commit or 'no commit'}: what differs may be the code's doing.",
            stacklevel=2,
        )
    return compare_rebuilt(release, rebuild(config))


def compare_rebuilt(release: Release, rebuilt: Rebuilt) -> Reproduction:
    """What a rebuilding shares with the release and what not."""
    weights = release.proofs.get("weights_sha256")
    found = [
        *compare_sections("data", {"fingerprint": release.fingerprint}, {"fingerprint": rebuilt.fingerprint}),
        *compare_sections("weights", {"sha256": weights}, {"sha256": rebuilt.weights_sha256}),
        *compare_sections("metrics", metrics(release.proofs.get("test", {})), metrics(rebuilt.test)),
        *compare_sections("code", release.git, rebuilt.git),
        *compare_sections("environment", flatten(release.environment), flatten(rebuilt.environment)),
    ]
    assert release.version is not None
    return Reproduction(
        version=release.version,
        same_data=release.fingerprint == rebuilt.fingerprint,
        same_weights=weights == rebuilt.weights_sha256,
        differences=tuple(found),
    )
