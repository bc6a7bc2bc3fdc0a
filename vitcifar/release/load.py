"""The weights of a release, for training to start from."""

from typing import TYPE_CHECKING

from vitcifar.config import TrainConfig
from vitcifar.errors import ReleaseError
from vitcifar.release.artifacts import variable
from vitcifar.release.manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from vitcifar.model.network import Classifier

PREFIX = "network."  # what the released module calls the network inside it
NO_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


def load_weights(release: Manifest) -> "dict[str, Tensor]":
    """The state dict of the network in a verified release, from its pt2. Raises ReleaseError."""
    module = load_module(release)
    return {name.removeprefix(PREFIX): tensor for name, tensor in module.state_dict().items()}


def load_module(release: Manifest) -> "Module":
    """The network in a verified release as it was traced, from its pt2, with pickle off. Raises ReleaseError."""
    import mlflow.pytorch
    from mlflow.exceptions import MlflowException

    assert release.folder is not None
    try:
        with variable(NO_PICKLE, "false"):
            return mlflow.pytorch.load_model(str(release.folder))
    except MlflowException as error:
        raise ReleaseError(f"The weights in {release.folder} are not plain tensors: {error}") from error


def open_network(release: Manifest) -> "Classifier":
    """The network of a release that was pulled with its pt2, ready to answer.

    Raises ReleaseError when the networks of this vitcifar cannot hold its weights.
    """
    from vitcifar.model.network import build_network

    config = TrainConfig(
        arch=release.config["arch"], image_size=release.image_size, weights="none", train_layers="head"
    )
    network = build_network(config, release.class_names)
    weights = load_weights(release)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ReleaseError(
            f"The weights of {release.model_name} {release.version} do not fit {config.arch} of this vitcifar, "
            "another made them: ask its ONNX file, which answers as ever."
        ) from error
    return network.eval()
