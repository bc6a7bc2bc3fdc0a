"""Makes a built release a version of the registry."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import mlflow

from vitcifar.config import TrainConfig
from vitcifar.errors import VitCifarError
from vitcifar.registry import description
from vitcifar.registry.aliases import create_model
from vitcifar.registry.registry import DIGEST_TAG, Registry
from vitcifar.release.build import MODEL_TAG, build_release
from vitcifar.release.manifest import Manifest, index_tags
from vitcifar.tensorboard import add_graph
from vitcifar.tracking import Run, reaching

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

LINK_TAG = "mlflow.modelVersions"  # MLflow's own: its page of a logged model shows the versions


def register(release: Manifest, model_id: str, digest: str) -> int:
    """Create the version with its tags in one request, so that it exists completely or not at all; then describe it."""
    client = mlflow.MlflowClient()
    # MLflow's list of versions shows the tags in this order.
    tags = {**index_tags(release), description.GATES_TAG: description.summarize(()), DIGEST_TAG: digest}
    source = {"source": f"models:/{model_id}", "run_id": release.run_id, "model_id": model_id}
    with reaching(mlflow.get_tracking_uri()):
        create_model(client, release.model_name)
        version = client.create_model_version(release.model_name, **source, tags=tags, await_creation_for=0)
        link(release.model_name, int(version.version), model_id)
    registry = Registry(release.model_name)
    try:
        description.update_model(registry, release)
    except VitCifarError as error:
        warnings.warn(f"MLflow's page of {release.model_name} is not up to date: {error}", stacklevel=2)
    description.update(registry, int(version.version))
    return int(version.version)


def publish(run: Run, network: "Classifier", config: TrainConfig, steps: Mapping[str, int], **release: Any) -> Manifest:
    """Build the release of a run and register it, with `release` as `build_release` takes it, unless the run has
    registered its network before it was stopped, or lost its store. The run's metrics of each split, at the split's
    step, are attached to it. Raises VitCifarError.
    """
    from vitcifar.model.network import weights_sha256

    if found := find_registered(Registry(config.model_name), run.run_id, weights_sha256(network)):
        return found
    discard_unregistered(config.model_name, run.run_id)
    built = build_release(network, config=config, run_id=run.run_id, **release)
    add_graph(run.writer, built.program)
    run.link_model(built.model_id, steps)
    return dataclasses.replace(built.manifest, version=register(built.manifest, built.model_id, built.digest))


def find_registered(registry: Registry, run_id: str, weights: str) -> Manifest | None:
    """The release of a run with weights of this sha256, if the run has registered it. Raises VitCifarError."""
    for version in registry.search(f"name = '{registry.model_name}' AND run_id = '{run_id}'"):
        if version.digest and (release := registry.manifest(version)).checks.get("weights_sha256") == weights:
            return release
    return None


def find_derived(registry: Registry, number: int) -> Manifest | None:
    """The release of a version that was derived from the version `number`; None without one. Raises VitCifarError."""
    for version in registry.list():
        if version.number > number and version.digest:
            release = registry.manifest(version)
            if (release.checks.get("derived_from") or {}).get("version") == number:
                return release
    return None


def discard_unregistered(model_name: str, run_id: str) -> None:
    """Delete what an earlier process has stored of a run's release and not registered, which the doctor would register.

    Raises TrackingError.
    """
    client = mlflow.MlflowClient()
    query = f"source_run_id = '{run_id}' AND tags.{MODEL_TAG} = '{model_name}'"
    with reaching(mlflow.get_tracking_uri()):
        experiment = client.get_run(run_id).info.experiment_id
        for model in client.search_logged_models([experiment], filter_string=query):
            if LINK_TAG not in model.tags:  # else its version was deleted on purpose
                client.delete_logged_model(model.model_id)


def link(model_name: str, number: int, model_id: str) -> None:
    """Make MLflow's page of a logged model show its version."""
    versions = json.dumps([{"name": model_name, "version": number}])
    mlflow.MlflowClient().set_logged_model_tags(model_id, {LINK_TAG: versions})
