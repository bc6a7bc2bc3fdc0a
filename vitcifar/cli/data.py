"""The command on the images that training would use: what they are, and what is wrong with them."""

from pathlib import Path
from typing import Any

import click

from vitcifar.cli import format, options
from vitcifar.cli.runs import DATA_SETTINGS
from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError
from vitcifar.presets import resolve

FEATURE_SETTINGS = ("arch", "weights", "normalization", "image_size", "batch_size", "device", "cache_disk")


@options.command
@click.argument("action", type=click.Choice(["show", "audit"]), default="show")
@options.settings(*DATA_SETTINGS, *FEATURE_SETTINGS)
@options.option("--sheet", "preview.png", "Output file of the contact sheet.", type=click.Path(dir_okay=False))
@options.option("--out", "audit", "Folder of the audit: audit.html and audit.csv.", type=click.Path(file_okay=False))
@options.tracking_uri_option
def data(action: str, preset: str, sheet: str, out: str, tracking_uri: str, **values: Any) -> None:
    """Prepare the dataset, print its counts and fingerprint, and draw a contact sheet; or audit it.

    The audit lists likely label errors, duplicates, and images that are dark, bright, blurry, empty or of an odd size,
    of the images that `train` would take with the same settings. Labels are judged with features of --weights (none =
    of the pixels alone).

    \b
    vitcifar data --data folder --data-dir images --sheet preview.png
    vitcifar data audit --data folder --data-dir images --train-per-class 0 --test-per-class 0
    vitcifar data audit --preset digits --out audit
    """
    given = options.given(values)
    config = resolve(preset, **given)
    if action == "audit":
        return audit(config, Path(out), tracking_uri, weights_required="weights" in given)
    show(config, Path(sheet))


def show(config: TrainConfig, sheet: Path) -> None:
    """Print counts and fingerprint, and write the contact sheet."""
    from vitcifar.data.contact_sheet import contact_sheet
    from vitcifar.data.splits import read_splits

    splits = read_splits(config)
    for split, dataset in splits.datasets.items():
        counts = ", ".join(f"{name} {count}" for name, count in dataset.counts().items())
        format.print_field(split, f"{len(dataset)} images: {counts}")
    format.print_field("fingerprint", splits.fingerprint)
    path = sheet if sheet.suffix else Path(f"{sheet}.png")
    try:
        contact_sheet(splits.train).save(path)
    except ValueError as error:  # an unknown file extension
        raise ConfigError(f"The contact sheet {path} cannot be written ({error}): name a .png file.") from error
    except OSError as error:
        problem = f"The contact sheet {path} cannot be written ({error.strerror or error})"
        raise ConfigError(f"{problem}: name another file with --sheet.") from error
    format.print_field("contact sheet", path)


def audit(config: TrainConfig, folder: Path, tracking_uri: str, *, weights_required: bool) -> None:
    """Write the audit, and print how many images of each kind there are."""
    from vitcifar import tracking
    from vitcifar.experiments.audit import REPORT, TABLE, audit_data

    if config.weights.startswith("models:/"):
        tracking.connect(tracking_uri, new=False)
    found = audit_data(config, folder, weights_required=weights_required)
    format.print_field("images", f"{found.num_images:,}")
    if found.num_judged:
        format.print_field("accuracy", f"{found.accuracy:.4f} of the predictions that labels are compared with")
    for kind, count in found.counts().items():
        format.print_field(kind, f"{count:,}")
    if not found.issues:
        format.print_field("issues", "none")
    for note in found.notes:
        click.echo(f"Note: {note}", err=True)
    format.print_field("report", folder / REPORT)
    format.print_field("table", folder / TABLE)
