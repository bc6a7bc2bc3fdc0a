"""The command on what people said of predictions: how often a version was right, and images for the next."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitcifar.cli import format, options

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry
    from vitcifar.serving.feedback import Entry
    from vitcifar.serving.feedback_export import Known

BIASED = (
    "Note: this is the accuracy on images that somebody chose to mark, which are no random sample of those that were "
    "classified; the interval does not cover that."
)


@options.command
@click.argument("action", type=click.Choice(["list", "export"]))
@click.argument("folder", default="none")
@options.option("--feedback", "sqlite:///feedback.db", "Store of the feedback, as of the server.")
@click.option(
    "--as",
    "purpose",
    type=click.Choice(["train", "golden"]),
    default="train",
    help="What the images are exported for: FOLDER/train/CLASS, or FOLDER/CLASS as golden images.",
)
@options.format_option
@options.model_name_option
@options.tracking_uri_option
def feedback(
    action: str, folder: str, feedback: str, purpose: str, output_format: str, model_name: str, tracking_uri: str
) -> None:
    """List what people said of predictions, or export the images to FOLDER.

    The accuracy of a version is that of the images that somebody marked. Exported are images whose true class is known
    and that are not among the training, validation or test images of a version that predicted them.

    \b
    vitcifar feedback list
    vitcifar feedback export images
    vitcifar feedback export golden --as golden
    """
    from vitcifar.serving.feedback import FeedbackStore

    if (action == "export") == (folder == "none"):
        example = "vitcifar feedback export images" if action == "export" else "vitcifar feedback list"
        raise click.UsageError(f"Export needs a folder, list takes none: type {example}.")
    store = FeedbackStore(feedback, new=False)
    entries = store.entries(model_name)
    if not entries:
        raise click.ClickException(f"There is no feedback on {model_name} in the store: serve with vitcifar app.")
    if action == "list":
        return print_feedback(entries, output_format)
    from vitcifar.data.image import readable_name
    from vitcifar.serving.feedback_export import export_feedback

    known = images_of_versions(entries, options.open_registry(model_name, tracking_uri))
    done = export_feedback(store, entries, Path(folder), golden=purpose == "golden", known=known)
    for name, count in sorted(done.counts.items()):
        format.print_field(name, count)
    for reason, hashes in done.left_out.items():
        first = readable_name(b"", ", ".join(one[:12] for one in hashes[:5]))
        click.echo(f"Left out, {reason}: {len(hashes)} ({first})", err=True)
    format.print_field("written", f"{sum(done.counts.values())} images to {done.folder}, {done.num_known} were there")
    format.print_field("fingerprint", done.fingerprint)


def print_feedback(entries: "list[Entry]", output_format: str) -> None:
    """The marked images of each version, or each entry as a line of JSON."""
    from vitcifar.data.image import readable_name
    from vitcifar.serving.feedback import live_accuracies

    if output_format == "json":
        for entry in entries:
            click.echo(json.dumps(dataclasses.asdict(entry)))
        return
    rows = []
    for live in live_accuracies(entries):
        counts = (live.num_right, live.num_wrong, live.num_contradictory, live.num_images)
        accuracy = "-" if live.accuracy is None else f"{live.accuracy:.4f}"
        interval = "-" if live.accuracy is None else "{:.4f} to {:.4f}".format(*live.interval)
        rows.append(
            (
                str(live.version or "-"),
                readable_name(b"", live.release_digest[:16]),
                *map(str, counts),
                accuracy,
                interval,
            )
        )
    header = ("version", "release", "right", "wrong", "contradictory", "kept", "accuracy of marked", "95% interval")
    format.print_table(header, rows)
    click.echo(BIASED, err=True)


def images_of_versions(entries: "list[Entry]", registry: "Registry") -> "list[Known]":
    """The images that the versions in some entries were trained and tested on, as far as they can be read."""
    from vitcifar.errors import VitCifarError
    from vitcifar.experiments.versions import recorded_splits
    from vitcifar.serving.feedback_export import Known

    known, seen = [], set()
    for number in sorted({entry.version for entry in entries if entry.version is not None}):
        name = f"version {number}"
        try:
            release = registry.pull(number)
            splits = recorded_splits(release)
        except VitCifarError as error:
            click.echo(f"Note: the images of {name} are not compared. {error}", err=True)
            continue
        if splits is None:
            click.echo(f"Note: the images of {name} cannot be read, so none is compared with them.", err=True)
            continue
        if splits.fingerprint != release.fingerprint:
            click.echo(f"Note: the images of {name} have changed: those that are there now are compared.", err=True)
        if splits.fingerprint not in seen:
            seen.add(splits.fingerprint)
            known += [
                Known(name=f"the {split} images of {name}", images=dataset.images)
                for split, dataset in splits.datasets.items()
                if len(dataset)
            ]
    return known
