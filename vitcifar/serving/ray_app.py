"""The server's REST behind Ray Serve: `serve run vitcifar.serving.ray_app:app version=champion`.

Each replica is a process with a version pool of its own, which follows the alias; Ray distributes the requests.
"""

import os
from typing import TYPE_CHECKING, Any

from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

NUM_REPLICAS = 2
# Arguments of `serve run`, and `args` in a config file of Ray Serve.
DEFAULTS = {"version": "champion", "model_name": TrainConfig.model_name, "tracking_uri": "", "allowed_hosts": ""}


def app(args: dict[str, str]) -> "Application":
    """The application that `serve run` and `serve deploy` start. Raises ConfigError for an unknown argument.

    `tracking_uri` is MLFLOW_TRACKING_URI or ./mlflow.db by default; `allowed_hosts` are more host names of the server,
    separated by commas.
    """
    from ray import serve

    if unknown := args.keys() - DEFAULTS.keys():
        raise ConfigError(f"There is no argument {', '.join(sorted(unknown))}: there are {', '.join(DEFAULTS)}.")
    given = {**DEFAULTS, **{name: str(value) for name, value in args.items()}}

    def build() -> "FastAPI":
        return build_replica(**given)

    server: Any = serve.deployment(serve.ingress(build)(), name="Server", num_replicas=NUM_REPLICAS)
    return server.bind()


def build_replica(version: str, model_name: str, tracking_uri: str, allowed_hosts: str) -> "FastAPI":
    """Load the version in this replica, follow it, and return the server. Raises as `app.launch` does."""
    import ray

    from vitcifar import tracking
    from vitcifar.registry.registry import Registry
    from vitcifar.serving.app import POLL_SECONDS
    from vitcifar.serving.decoder import start_decoder
    from vitcifar.serving.middleware import ALL_INTERFACES
    from vitcifar.serving.model_pool import ModelPool
    from vitcifar.serving.server import build_server

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(max(1, int(cores))))  # threads of onnxruntime, and decoders
    tracking.connect(tracking_uri or None, new=False)
    pool = ModelPool(Registry(model_name), version)
    hosts = tuple(name.strip() for name in allowed_hosts.split(",") if name.strip())
    server = build_server(pool, host=ALL_INTERFACES[0], allowed_hosts=hosts)
    pool.follow(POLL_SECONDS)
    start_decoder()
    return server
