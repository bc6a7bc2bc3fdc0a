"""Makes a built release a version of the registry."""

import json
import warnings

import mlflow

from vitcifar.errors import VitCifarError
from vitcifar.registry import description
from vitcifar.registry.aliases import create_model
from vitcifar.registry.registry import DIGEST_TAG, Registry
from vitcifar.release.manifest import Manifest, index_tags
from vitcifar.tracking import reaching

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


def link(model_name: str, number: int, model_id: str) -> None:
    """Make MLflow's page of a logged model show its version."""
    versions = json.dumps([{"name": model_name, "version": number}])
    mlflow.MlflowClient().set_logged_model_tags(model_id, {LINK_TAG: versions})
