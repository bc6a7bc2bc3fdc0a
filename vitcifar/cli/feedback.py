"""The commands that learn from use: what people said of predictions, and which images to label next."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitcifar.cli import format, options
from vitcifar.config import TrainConfig
from vitcifar.errors import redact

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry
    from vitcifar.serving.feedback import Entry
    from vitcifar.serving.feedback_export import Known
    from vitcifar.serving.suggest import Suggested

FEEDBACK = "sqlite:///feedback.db"
BIASED = (
    "Note: this is the accuracy on images that somebody chose to mark, which are no random sample of those that were "
    "classified; the interval does not cover that."
)


@options.command
@click.argument("action", type=click.Choice(["list", "export"]))
@click.argument("folder", default="none")
@options.option("--feedback", FEEDBACK, "Store of the feedback, as of the server.")
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

    numbers = {entry.version for entry in entries if entry.version is not None}
    known = images_of_versions(numbers, options.open_registry(model_name, tracking_uri))
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
    from vitcifar.serving.feedback import SUGGESTED, live_accuracies

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
    if num_suggested := len({entry.image_hash for entry in entries if entry.source == SUGGESTED}):
        click.echo(
            f"Note: {num_suggested:,} labelled suggestions are left out: the version was uncertain of them.", err=True
        )


@options.registry_command
@click.argument("folder")
@options.option("--num", 50, "Images to suggest.", minimum=1)
@click.option("--out", default="none", show_default=True, help="Table to write: a .csv file (none = print only).")
@options.version_option
@options.option("--feedback", FEEDBACK, "Store of the feedback, as of the server, whose images are left out.")
@options.option(
    "--keep-features", TrainConfig.cache_disk, "Features that are kept on disk, in GB (0 = none).", minimum=0.0
)
@options.require_signature_option
def suggest(
    registry: "Registry",
    folder: str,
    num: int,
    out: str,
    version: str,
    feedback: str,
    keep_features: float,
    require_signature: str,
) -> None:
    """Suggest which images of FOLDER to label next: those that a version is uncertain of and that differ.

    Left out are images that were labelled already, and those that the version was trained or tested on. Label them on
    the page, with --suggestions of vitcifar app.

    \b
    vitcifar suggest photos --num 50 --out suggestions.csv
    vitcifar app --feedback sqlite:///feedback.db --suggestions suggestions.csv
    """
    from vitcifar.serving.loaded_model import open_version
    from vitcifar.serving.suggest import check_new_suggestions, write_suggestions
    from vitcifar.serving.suggest import suggest as choose

    registry.require_signature = require_signature
    if out != "none":
        check_new_suggestions(Path(out))
    labelled = labelled_images(feedback, registry.model_name)
    number = registry.show(version).number
    model = open_version(registry, number, num_threads=1)
    known = images_of_versions({number}, registry)
    limit = int(keep_features * 1e9)
    done = choose(model, Path(folder), num, labelled=labelled, known=known, max_bytes=limit)
    print_suggested(done)
    if out != "none":
        write_suggestions(model, done, Path(out))
        command = f"vitcifar app --feedback {redact(feedback)} --suggestions {out}"
        click.echo(f"{len(done.suggestions):,} suggestions in {out}. To label them: {command}", err=True)


def labelled_images(feedback: str, model_name: str) -> set[str]:
    """The hashes of the images in a store of feedback; none where there is no store of the default name."""
    from vitcifar.serving.feedback import FeedbackStore

    if feedback == FEEDBACK and not Path(FEEDBACK.removeprefix("sqlite:///")).exists():
        click.echo(f"Note: there is no store of feedback {feedback}, so no image is known to be labelled.", err=True)
        return set()
    return FeedbackStore(feedback, new=False).hashes(model_name)


def print_suggested(done: "Suggested") -> None:
    """The suggestions, what was left out, and the files that cannot be read."""
    from vitcifar.data.image import readable_name

    rows = [
        (str(rank), readable_name(b"", one.path), readable_name(b"", one.label), f"{one.probability:.4f}")
        for rank, one in enumerate(done.suggestions, 1)
    ]
    if rows:
        format.print_table(("rank", "file", "prediction", "probability"), rows)
    for error in done.errors.values():
        click.echo(error, err=True)
    for reason, count in sorted(done.left_out.items()):
        click.echo(f"Left out, {reason}: {count:,}", err=True)
    if not rows:
        raise click.ClickException(f"None of the {done.num_images:,} images is left to label: name another folder.")


def images_of_versions(numbers: Collection[int], registry: "Registry") -> "list[Known]":
    """The images that versions were trained and tested on, as far as they can be read."""
    from vitcifar.errors import VitCifarError
    from vitcifar.experiments.versions import recorded_splits
    from vitcifar.serving.feedback_export import Known

    known, seen = [], set()
    for number in sorted(numbers):
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
