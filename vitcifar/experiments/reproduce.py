"""Reproduction of a version: train it again from its recorded config and compare the result."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from vitcifar import pipeline
from vitcifar.config import TrainConfig
from vitcifar.data.splits import read_splits
from vitcifar.errors import ConfigError, ReleaseError
from vitcifar.model.network import weights_sha256
from vitcifar.registry.diff import Difference, compare_sections, flatten, metrics
from vitcifar.registry.registry import Registry
from vitcifar.release.build import environment, git_of
from vitcifar.release.manifest import Manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction:
    """The result of training a version again; the differences explain weights that are not the same."""

    version: int
    same_weights: bool
    differences: tuple[Difference, ...]


def recorded_config(release: Manifest) -> TrainConfig:
    """The config of a version, without resuming and promoting; raises ReleaseError for one of another vitcifar."""
    try:
        return TrainConfig(**{**release.config, "resume": "none", "promote_to": "none"})
    except (TypeError, ConfigError) as error:
        raise ReleaseError(
            f"The config of version {release.version} was recorded by another vitcifar ({error}): "
            f"check out commit {release.git.get('commit') or 'not recorded'} and reproduce there."
        ) from error


def reproduce(registry: Registry, spec: str | int) -> Reproduction:
    """Train a version again from its recorded config, as a run that releases nothing, and compare.

    Raises ReleaseError before training when the images differ; warns when the commit differs.
    """
    release = registry.pull(spec)
    config = recorded_config(release)
    splits = read_splits(config)
    if splits.fingerprint != release.fingerprint:
        raise ReleaseError(
            f"The images are not those of version {release.version}: expected fingerprint "
            f"{release.fingerprint[:16]}…, got {splits.fingerprint[:16]}…. Restore the images and try again."
        )
    commit, present = release.git.get("commit"), pipeline.git_state().get("git_commit")
    if commit != present:
        warnings.warn(
            f"Version {release.version} was trained with commit {commit or 'not recorded'}, this is "
            f"{present or 'no commit'}: differences may come from the code.",
            stacklevel=2,
        )
    network = pipeline.make_network(config, splits.class_names)
    with pipeline.start_run(config, run_name=f"reproduce-{config.model_name}") as run:
        _, evaluation = pipeline.learn_and_test(run, network, splits, config)
    return compare_retrained(release, weights_sha256(network), evaluation.to_dict(), git_of(run.run_id))


def compare_retrained(
    release: Manifest, sha256: str, evaluation: Mapping[str, Any], git: Mapping[str, Any]
) -> Reproduction:
    """Compare the weights (by sha256), metrics, code and environment of the retrained network with the release."""
    weights = release.checks.get("weights_sha256")
    differences = [
        *compare_sections("weights", {"sha256": weights}, {"sha256": sha256}),
        *compare_sections("metrics", metrics(release.checks.get("test", {})), metrics(evaluation)),
        *compare_sections("code", release.git, git),
        *compare_sections("environment", flatten(release.environment), flatten(environment())),
    ]
    assert release.version is not None
    return Reproduction(version=release.version, same_weights=weights == sha256, differences=tuple(differences))
