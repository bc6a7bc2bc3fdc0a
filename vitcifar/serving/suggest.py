"""Suggestions of images to label: chosen from a folder, written as a table, and read again by the tab Label."""

import csv
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vitcifar.data.image import readable_name
from vitcifar.errors import DataError
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.tables import check_new_table, find_column

if TYPE_CHECKING:
    from vitcifar.serving.embeddings import Embedded
    from vitcifar.serving.feedback_export import Known

COLUMNS = ("rank", "path", "label", "probability", "image_hash", "error", "model", "version", "digest")
MAX_SUGGESTIONS = 10_000  # that a server reads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suggestion:
    """An image to label, the first one first. `label` is the prediction, `image_hash` "" if it is not known."""

    path: str
    label: str = ""
    probability: float = 0.0
    image_hash: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suggested:
    """What was chosen of a folder's images, which of them were left out and why, and those that cannot be read."""

    suggestions: tuple[Suggestion, ...]
    num_images: int
    left_out: Mapping[str, int]  # reason -> number of images
    errors: Mapping[str, str]  # path -> sentence


def suggest(
    model: LoadedModel,
    folder: Path,
    num: int,
    *,
    labelled: Collection[str] = (),
    known: "Iterable[Known]" = (),
    max_bytes: int = 0,
) -> Suggested:
    """Choose `num` images of a folder to label: those about which `model` is uncertain and that differ from each other.

    Left out are images with the hash of one that is `labelled`, those that are, or nearly are, among `known` ones, such
    as its training images, and all but the first of identical ones. `max_bytes` is the limit of the embeddings that are
    kept on disk. Raises DataError for a folder without images.
    """
    from vitcifar.evaluation.active_learning import select_images  # the server imports this module for its tables
    from vitcifar.serving.embeddings import embed_folder
    from vitcifar.serving.feedback_export import alike

    found = embed_folder(model, folder, max_bytes=max_bytes)
    first = {digest: index for index, digest in reversed([*enumerate(found.hashes)])}
    reasons = dict.fromkeys(first.keys() & set(labelled), "labelled already")
    small = {digest: found.thumbnails[index] for digest, index in first.items() if digest not in reasons}
    reasons |= {digest: f"like one of {name}" for digest, name in alike(small, known).items()}
    left_out = Counter(reasons[digest] for digest in found.hashes if digest in reasons)
    candidates = sorted(index for digest, index in first.items() if digest not in reasons)
    if same := len(found.hashes) - left_out.total() - len(candidates):
        left_out["the same as another"] = same
    chosen = select_images(found.probabilities[candidates], found.embeddings[candidates], num)
    return Suggested(
        suggestions=tuple(_suggestion(model, found, candidates[index]) for index in chosen),
        num_images=len(found.hashes) + len(found.errors),
        left_out=left_out,
        errors=found.errors,
    )


def _suggestion(model: LoadedModel, found: "Embedded", index: int) -> Suggestion:
    best = int(found.probabilities[index].argmax())
    return Suggestion(
        path=found.paths[index],
        label=model.class_names[best],
        probability=float(found.probabilities[index, best]),
        image_hash=found.hashes[index],
    )


def check_new_suggestions(out: Path) -> None:
    """Raise DataError for a table that is no CSV, that exists, or in a folder that does not."""
    if out.suffix.lower() != ".csv":
        raise DataError(f"{out} is no CSV file: name one that ends with .csv.")
    check_new_table(out)


def write_suggestions(model: LoadedModel, suggested: Suggested, out: Path) -> None:
    """Write suggestions, then the files that cannot be read with their errors, whole or not at all; paths are absolute.

    Raises DataError when the file cannot be written.
    """
    by = {"model": model.model_name, "version": model.version, "digest": model.digest}
    rows = [
        {**dataclasses.asdict(one), "path": os.path.abspath(one.path), "rank": rank, **by}
        for rank, one in enumerate(suggested.suggestions, 1)
    ]
    rows += [{"path": os.path.abspath(path), "error": error, **by} for path, error in suggested.errors.items()]
    from vitcifar.serving.feedback_export import write_whole

    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    table.writerows(rows)
    try:
        write_whole(out, text.getvalue().encode())
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{out} cannot be written ({reason}): name another file with --out.") from None


def read_suggestions(path: Path) -> tuple[Suggestion, ...]:
    """The images to label in a table of suggestions, or in any CSV with a column of paths. Raises DataError.

    Rows with an error are left out. A relative path is one in the folder of the table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            column = find_column(path, table.fieldnames or ())
            rows = [row for row in table if row[column] and not row.get("error")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a table of suggestions ({error}): write one with vitcifar suggest FOLDER --out "
            f"{readable_name(path)}."
        ) from None
    if not 0 < len(rows) <= MAX_SUGGESTIONS:
        raise DataError(f"{path} has {len(rows):,} images to label: expected 1 to {MAX_SUGGESTIONS:,}.")
    return tuple(
        Suggestion(path=str(path.parent / row[column]), image_hash=row.get("image_hash") or "") for row in rows
    )
