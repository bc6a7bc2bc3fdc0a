"""Searches a faster variant of a registered version, as a run of its own."""

from collections.abc import Sequence

from vitcifar import tracking
from vitcifar.errors import ConfigError, DataError
from vitcifar.experiments.versions import OUTPUT_DIR, read_images
from vitcifar.registry.derivation import Derived, derive, run_tags, run_title
from vitcifar.registry.registry import Registry
from vitcifar.registry.variants import combinations
from vitcifar.release.cache import open_network
from vitcifar.release.manifest import Manifest


def optimize(
    registry: Registry,
    spec: str | int,
    *,
    max_p95_ms: float,
    experiment: str,
    image_sizes: Sequence[int] = (),
    token_merging: Sequence[int] = (),
    merging_schedules: Sequence[str] = (),
) -> tuple[str, Derived]:
    """Measure the variants of a version, and register the fastest that is not worse and within the budget (0 = none).

    The variants are all combinations of image sizes, merged pairs and schedules (none given = a few that fit).

    Nothing is registered if no variant is faster than the version. Returns the id of the run. Raises VitCifarError.
    """
    release = registry.pull(spec, pytorch=True)
    config, splits = read_images(release)
    if splits.fingerprint != release.fingerprint or not len(splits.validation):
        raise DataError(f"The validation images of {release.name} have changed: restore them and try again.")
    network, name = open_network(release), run_title(release)
    with tracking.start_run(experiment=experiment, output_dir=OUTPUT_DIR, run_name=name, tags=run_tags(release)) as run:
        choices = combinations(network, image_sizes, token_merging, merging_schedules)
        return run.run_id, derive(run, network, release, config, splits, max_p95_ms=max_p95_ms, choices=choices)


def check_trained(release: Manifest) -> None:
    """Raise ConfigError for a version that was derived from another one without training."""
    if origin := release.checks.get("derived_from"):
        raise ConfigError(
            f"{release.name} was derived from version {origin['version']} without training: type "
            f"vitcifar reproduce {origin['version']}."
        )
