"""Reproduction of a version: train it again from its recorded config and compare the result."""

import dataclasses
import warnings

from vitcifar import pipeline
from vitcifar.config import TrainConfig
from vitcifar.data.splits import read_splits
from vitcifar.errors import ConfigError, ReleaseError
from vitcifar.model.network import weights_sha256
from vitcifar.registry.diff import Difference, compare_sections, flatten, metrics
from vitcifar.registry.registry import Registry
from vitcifar.release.build import environment, git_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction:
    """The result of training a version again; the differences explain weights that are not the same."""

    version: int
    same_weights: bool
    differences: tuple[Difference, ...]


def reproduce(registry: Registry, spec: str | int) -> Reproduction:
    """Train a version again from its recorded config, as a run that releases nothing, and compare.

    The config neither resumes nor promotes. Raises ReleaseError before training when the images differ, or the config
    is one of another vitcifar; warns when the commit differs.
    """
    release = registry.pull(spec)
    assert release.version is not None
    commit, git = release.git.get("commit"), git_state()
    try:
        config = TrainConfig(**{**release.config, "resume": "none", "promote_to": "none"})
    except (TypeError, ConfigError) as error:
        raise ReleaseError(
            f"The config of version {release.version} was recorded by another vitcifar ({error}): "
            f"check out commit {commit or 'not recorded'} and reproduce there."
        ) from error
    splits = read_splits(config)
    if splits.fingerprint != release.fingerprint:
        raise ReleaseError(
            f"The images are not those of version {release.version}: expected fingerprint "
            f"{release.fingerprint[:16]}…, got {splits.fingerprint[:16]}…. Restore the images and try again."
        )
    if commit != git["commit"]:
        warnings.warn(
            f"Version {release.version} was trained with commit {commit or 'not recorded'}, this is "
            f"{git['commit'] or 'no commit'}: differences may come from the code.",
            stacklevel=2,
        )
    network = pipeline.make_network(config, splits.class_names)
    with pipeline.start_run(config, run_name=f"reproduce-{config.model_name}") as run:
        _, evaluation = pipeline.fit_and_test(run, network, splits, config)
    recorded, weights = release.checks.get("weights_sha256"), weights_sha256(network)
    differences = (
        *compare_sections("weights", {"sha256": recorded}, {"sha256": weights}),
        *compare_sections("metrics", metrics(release.checks.get("test", {})), metrics(evaluation.to_dict())),
        *compare_sections("code", release.git, git),
        *compare_sections("environment", flatten(release.environment), flatten(environment())),
    )
    return Reproduction(version=release.version, same_weights=recorded == weights, differences=differences)
