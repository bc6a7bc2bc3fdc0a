"""Commands that answer with a registered version: the server, predictions and tables of them. None imports torch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitcifar.cli import format, options
from vitcifar.config import TrainConfig

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry


@options.registry_command
@options.version_option
@options.option("--host", "127.0.0.1", "Address to listen on (0.0.0.0 = all interfaces).")
@options.option("--port", 7860, "Port to listen on (0 = any free port).", minimum=0, maximum=65535)
@options.option(
    "--allowed-hosts",
    "none",
    "More host names of the server, separated by commas, e.g. photos.example or *.example:8443 (none = no others).",
    callback=options.host_names,
)
@options.option("--auth", "none", "File of lines NAME:PASSWORD; people and programs must log in (none = no login).")
@options.yes_or_no("--public", "Open the server to other machines without a login.")
@options.option("--page", "on", "Serve the page, or REST only.", choices=("on", "off"))
@options.option(
    "--feedback",
    "none",
    "Store for feedback: sqlite:///FILE or another SQLAlchemy URL (none = no feedback).",
)
@options.option(
    "--shadow",
    "none",
    "Alias or number of a version that predicts the same images in the background (none = no other version).",
)
@options.option(
    "--suggestions",
    "none",
    "Table of vitcifar suggest, or a CSV file of paths, whose images visitors of the page label (none = no labelling).",
)
@options.option("--root-path", "none", "Sub-path, or whole URL, at which a proxy offers the server (none = neither).")
@options.option(
    "--max-request-mib", 16, "Largest request, in MiB; images in JSON take a third more.", minimum=1, maximum=1024
)
@options.require_signature_option
def app(
    registry: "Registry",
    version: str,
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    auth: str,
    public: bool,
    page: str,
    root_path: str,
    feedback: str,
    shadow: str,
    suggestions: str,
    max_request_mib: int,
    require_signature: str,
) -> None:
    """Serve a version that follows its alias: a demo page, REST, health and metrics.

    \b
    vitcifar app --version champion --port 7860
    vitcifar app --host 0.0.0.0 --auth passwords.txt
    vitcifar app --page off
    vitcifar app --feedback sqlite:///feedback.db
    vitcifar app --shadow challenger
    vitcifar app --feedback sqlite:///feedback.db --suggestions suggestions.csv
    """
    if suggestions != "none" and (feedback == "none" or page == "off"):
        example = f"--feedback sqlite:///feedback.db --suggestions {suggestions}"
        raise click.UsageError(f"Suggestions are labelled on the page, into a store: type vitcifar app {example}.")
    registry.require_signature = require_signature
    with options.without_gc():
        from vitcifar.serving.app import launch, read_passwords

        server = launch(
            registry,
            version,
            host=host,
            port=port,
            allowed_hosts=allowed_hosts,
            passwords=None if auth == "none" else read_passwords(Path(auth)),
            public=public,
            page=page == "on",
            root_path="" if root_path == "none" else root_path,
            feedback=feedback,
            shadow=shadow,
            suggestions=None if suggestions == "none" else Path(suggestions),
            max_request=max_request_mib * 2**20,
        )
    click.echo(f"{'  '.join(server.urls)}  (press Ctrl-C to stop)")
    server.wait()


@options.registry_command
@click.argument("files", nargs=-1, required=True, callback=options.several_files)
@options.version_option
@options.format_option
@options.require_signature_option
def predict(registry: "Registry", files: list[str], version: str, output_format: str, require_signature: str) -> None:
    """Classify image FILES with a registered version.

    \b
    vitcifar predict cat.jpg dog.png
    vitcifar predict --version 3 --format json photos/*.jpg
    """
    from vitcifar.serving.loaded_model import PredictionTable, open_version, predict_files

    registry.require_signature = require_signature
    model = open_version(registry, version)
    table, num_failed = PredictionTable(model, files), 0
    if output_format == "text":
        click.echo(table.heading())
    for row in predict_files(model, files):
        failed = "error" in row
        num_failed += failed
        if output_format == "json":
            click.echo(json.dumps(row))
        else:
            click.echo(table.line(row), err=failed)
    if num_failed:
        raise click.ClickException(f"{num_failed} of {len(files)} files could not be classified.")


@options.registry_command
@click.argument("sources", nargs=-1, required=True, callback=options.several_files)
@click.option("--out", required=True, help="Table to write: a .parquet, .csv or .jsonl file.")
@options.version_option
@options.option("--engine", "local", "What distributes the images.", choices=["local", "spark", "ray"])
@options.option(
    "--master",
    "auto",
    "Spark's master, e.g. local[2] or spark://HOST:PORT (auto = that of spark-submit or spark-defaults.conf).",
)
@options.require_signature_option
def score(
    registry: "Registry", sources: list[str], out: str, version: str, engine: str, master: str, require_signature: str
) -> None:
    """Classify any number of images into a table: files, folders, or lists of paths (.csv, .parquet).

    A broken image is a row with its error. After an interruption the same command goes on where it stopped; with Spark
    or Ray it starts again.

    \b
    vitcifar score photos --out predictions.parquet
    vitcifar score list.csv --out predictions.csv --version 3
    vitcifar score hdfs://host/photos --out predictions.parquet --engine spark --master spark://host:7077
    """
    if master != "auto" and engine != "spark":
        raise click.UsageError("--master is Spark's: add --engine spark.")
    registry.require_signature = require_signature
    row = registry.show(version)
    if engine == "local":
        from vitcifar.serving.loaded_model import open_version
        from vitcifar.serving.score import score as score_here

        done = score_here(open_version(registry, row.number, num_threads=1), sources, Path(out))
    else:
        from vitcifar.serving import engines

        done = engines.score(engines.ship(registry, row), engine, sources, Path(out), master=master)
    resumed = f", {done.num_resumed:,} of them before the interruption" if done.num_resumed else ""
    errors = f"; {done.num_errors:,} could not be classified, see the column error" if done.num_errors else ""
    click.echo(f"{done.num_rows:,} images by {registry.model_name} version {row.number} in {out}{resumed}{errors}.")


@options.command
@click.argument("action", type=click.Choice(["list", "prune"]))
@options.option("--keep", 0, "Releases that prune keeps (0 = as VITCIFAR_CACHE_KEEP says, otherwise 5).", minimum=0)
@options.option("--keep-features", TrainConfig.cache_disk, "Features that prune keeps, in GB (0 = none).", minimum=0.0)
def cache(action: str, keep: int, keep_features: float) -> None:
    """List the releases and features in this user's cache, or delete those that were not used for longest.

    Every command that downloads a release or keeps features prunes by itself. A release that a process has open is
    never deleted.

    \b
    vitcifar cache list
    vitcifar cache prune --keep 2 --keep-features 0
    """
    from vitcifar.cache import cache_dir, cached_features, features_dir, prune_features
    from vitcifar.release.cache import cached_releases, num_kept, prune_cache

    if action == "list":
        releases, features = cached_releases(), cached_features(features_dir())
    else:
        releases = prune_cache(keep or num_kept())
        features = prune_features(features_dir(), int(keep_features * 1e9))
    format.print_cached(releases)
    where = f"{'in' if action == 'list' else 'deleted from'} {cache_dir()}"
    for kind, found in (("releases", releases), ("files of features", features)):
        click.echo(f"{len(found)} {kind}, {sum(row.num_bytes for row in found) / 1e6:.1f} MB, {where}.")
