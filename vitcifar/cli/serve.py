"""Commands that serve predictions; neither imports torch."""

import json
from typing import TYPE_CHECKING

import click

from vitcifar.cli import options

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry


@options.command()
@options.version_option
@click.option("--host", default="127.0.0.1", help="Address to listen on (0.0.0.0 = all interfaces).")
@click.option("--port", default=7860, type=click.IntRange(0, 65535), help="Port to listen on (0 = any free port).")
@click.option(
    "--allowed-hosts",
    default="none",
    callback=options.host_names,
    help="Additional host names of the page, separated by commas (none = no others).",
)
@options.registry_options
def app(registry: "Registry", version: str, host: str, port: int, allowed_hosts: tuple[str, ...]) -> None:
    """Serve a version as a demo page that follows its alias.

    \b
    vitcifar app --version champion --port 7860
    """
    from vitcifar.serving.app import launch

    page = launch(registry, version, host=host, port=port, allowed_hosts=allowed_hosts)
    click.echo(f"{page.url}  (press Ctrl-C to stop)")
    page.wait()


@options.command()
@click.argument("files", nargs=-1, required=True)
@options.version_option
@options.format_option
@options.registry_options
def predict(registry: "Registry", files: tuple[str, ...], version: str, output_format: str) -> None:
    """Classify image FILES with a registered version.

    \b
    vitcifar predict cat.jpg dog.png
    vitcifar predict --version 3 --format json photos/*.jpg
    """
    from vitcifar.serving.loaded_model import PredictionTable, open_version, predict_files

    model = open_version(registry, version)
    table, num_failed = PredictionTable(model, files), 0
    if output_format == "text":
        click.echo(table.heading())
    for row in predict_files(model, files):
        failed = "error" in row
        num_failed += failed
        if output_format == "json":
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            click.echo(table.line(row), err=failed)
    if num_failed:
        raise click.ClickException(f"{num_failed} of {len(files)} files could not be classified.")
