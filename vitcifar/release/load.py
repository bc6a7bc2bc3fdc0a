"""Loads the PyTorch network of a release from its pt2 file, without pickle."""

from typing import TYPE_CHECKING

from vitcifar.config import TrainConfig
from vitcifar.errors import ReleaseError
from vitcifar.release.artifacts import environment_variable
from vitcifar.release.manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from vitcifar.model.network import Classifier

PREFIX = "network."  # of the classifier inside the exported module
NO_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


def release_weights(release: Manifest) -> "dict[str, Tensor]":
    """The state dict of the network of a verified release. Raises ReleaseError."""
    module = load_module(release)
    return {name.removeprefix(PREFIX): tensor for name, tensor in module.state_dict().items()}


def load_module(release: Manifest) -> "Module":
    """The exported module of a verified release, loaded from its pt2 with pickle disabled. Raises ReleaseError."""
    import mlflow.pytorch
    from mlflow.exceptions import MlflowException

    assert release.folder is not None
    try:
        with environment_variable(NO_PICKLE, "false"):
            module: Module = mlflow.pytorch.load_model(str(release.folder))
            return module
    except MlflowException as error:
        raise ReleaseError(f"The weights in {release.folder} are not plain tensors: {error}") from error


def open_network(release: Manifest) -> "Classifier":
    """Rebuild the network of a release that was pulled with its pt2, in evaluation mode.

    Raises ReleaseError if the weights do not fit the architecture in this version of vitcifar.
    """
    from vitcifar.model.network import build_network

    config = TrainConfig(
        arch=release.config["arch"], image_size=release.image_size, weights="none", train_layers="head"
    )
    network = build_network(config, release.class_names)
    weights = release_weights(release)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ReleaseError(
            f"The weights of {release.model_name} {release.version} do not fit {config.arch} of this vitcifar: "
            "use its ONNX model instead."
        ) from error
    return network.eval()
