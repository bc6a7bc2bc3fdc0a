"""The command that writes a container of the server."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitcifar.cli import options

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry


@options.registry_command
@click.option("--out", required=True, help="New folder for the files.")
@options.version_option
@options.option("--page", "off", "Serve the page as well, which adds Gradio.", choices=("on", "off"))
@options.require_signature_option
def container(registry: "Registry", out: str, version: str, page: str, require_signature: str) -> None:
    """Write a container of the server: Dockerfile, pinned requirements, compose.yaml, KServe and Ray Serve.

    It follows the alias in the registry that MLFLOW_TRACKING_URI names: this one, if it is a server that other machines
    reach, else an MLflow server in compose.yaml. It serves nothing that a required key has not signed.

    \b
    vitcifar container --version champion --out server
    cd server && docker compose up --build
    """
    import mlflow

    from vitcifar.registry.signing import check_signature
    from vitcifar.release.signature import REQUIRED, key_text
    from vitcifar.serving.container import write_container

    row, spec = registry.show(version), version.strip().removeprefix("@")
    registry.require_signature = require_signature
    check_signature(registry, row)
    key = require_signature if require_signature != "none" else os.environ.get(REQUIRED) or "none"
    names = write_container(
        Path(out),
        version=spec,
        model_name=registry.model_name,
        tracking_uri=mlflow.get_tracking_uri(),
        page=page == "on",
        require_signature=key_text(key),
    )
    now = "" if spec == str(row.number) else f" (now version {row.number})"
    click.echo(f"{registry.model_name} {spec}{now} in {out}: {', '.join(names)}.")
