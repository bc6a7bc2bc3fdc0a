"""The command that writes a container of the server."""

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
def container(registry: "Registry", out: str, version: str, page: str) -> None:
    """Write a container of the server: Dockerfile, pinned requirements, compose.yaml, KServe and Ray Serve.

    It follows the alias in the registry that MLFLOW_TRACKING_URI names: this one, if it is a server that other machines
    reach, else an MLflow server in compose.yaml.

    \b
    vitcifar container --version champion --out server
    cd server && docker compose up --build
    """
    import mlflow

    from vitcifar.serving.container import write_container

    row, spec = registry.show(version), version.strip().removeprefix("@")
    names = write_container(
        Path(out),
        version=spec,
        model_name=registry.model_name,
        tracking_uri=mlflow.get_tracking_uri(),
        page=page == "on",
    )
    now = "" if spec == str(row.number) else f" (now version {row.number})"
    click.echo(f"{registry.model_name} {spec}{now} in {out}: {', '.join(names)}.")
