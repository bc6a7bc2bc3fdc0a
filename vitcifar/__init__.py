"""Fine-tune vision transformers and register them as proven releases, tracked by MLflow.

trained = vitcifar.train(preset="digits", epochs=3)
model = vitcifar.load("models:/vitcifar@champion")
vitcifar.registry("vitcifar").promote(trained.version, reason="first release")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitcifar.pipeline import Trained
    from vitcifar.serving.loaded_model import LoadedModel

__version__ = "0.2.0"
__all__ = ["__version__", "load", "registry", "train"]


def train(preset: str = "cifar10", *, tracking_uri: str | None = None, **settings: Any) -> "Trained":
    """Train, evaluate, export to ONNX and register a version: `vitcifar train` from Python.

    `settings` are those of the reference, such as epochs=3 or data="folder"; they override the preset. The store is
    `tracking_uri`, else MLFLOW_TRACKING_URI, else ./mlflow.db. Raises VitCifarError for what a user can fix.
    """
    from vitcifar import pipeline

    return pipeline.train(pipeline.plan(preset, settings, tracking_uri))


def load(uri: str, *, tracking_uri: str | None = None, num_threads: int = 0) -> "LoadedModel":
    """Download, verify and open a registered version, to predict images on the CPU without torch.

    `uri` is models:/NAME/VERSION or models:/NAME@ALIAS; `num_threads` 0 uses all cores. Raises RegistryError when
    there is no such version, ReleaseError when it is incomplete or changed.
    """
    from vitcifar import tracking
    from vitcifar.registry.aliases import parse_uri
    from vitcifar.registry.registry import Registry
    from vitcifar.serving.loaded_model import open_version

    name, version = parse_uri(uri)
    tracking.connect(tracking_uri, new=False)
    return open_version(Registry(name), version, num_threads=num_threads)


def __getattr__(name: str) -> Any:
    if name == "registry":  # the room's package, which can be called
        import importlib

        return importlib.import_module("vitcifar.registry")
    raise AttributeError(f"module 'vitcifar' has no attribute {name!r}")
