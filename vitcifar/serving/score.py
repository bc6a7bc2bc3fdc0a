"""Batch scoring on this machine: any number of images into one table, in bounded memory, resumed after a kill.

Rows are appended to a journal beside the table in the order of the inputs. The table is written from the complete
journal and renamed into place, so it is the same file whether the scoring was interrupted or not.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock, Timeout

from vitcifar.data.image import read_image
from vitcifar.errors import DataError, ImageError
from vitcifar.inference.machine import available_cores
from vitcifar.progress import bar
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.tables import Item, Row, check_new_table, find_inputs, read_items, write_table

IMAGES_PER_TASK = 16  # of a thread: handing over each image alone costs a tenth of a small network's prediction
Value = TypeVar("Value")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """What a scoring wrote: the number of rows, of those with an error, and of those from before an interruption."""

    out: Path
    num_rows: int
    num_errors: int
    num_resumed: int = 0


def score(model: LoadedModel, sources: Sequence[str], out: Path) -> Scored:
    """Classify the images of `sources` into a table, one row for each in order; a broken image is a row with `error`.

    `model` should use one thread: as many images as there are cores are decoded and classified at a time. Raises
    DataError for inputs or a table that cannot be used.
    """
    check_new_table(out)
    inputs = find_inputs(sources)
    journal, start = out.with_name(f"{out.name}.partial"), _start(model, inputs)
    try:
        with FileLock(f"{journal}.lock", timeout=0):
            num_resumed = _resume(journal, start)
            _append(journal, model, inputs, num_resumed)
            num_rows, num_errors = write_table(_read_rows(journal), out)
            journal.unlink()
        Path(f"{journal}.lock").unlink(missing_ok=True)
    except Timeout:
        raise DataError(f"Another process is writing {out}: wait for it, or name another file with --out.") from None
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror or error}): name another file with --out.") from None
    return Scored(out=out, num_rows=num_rows, num_errors=num_errors, num_resumed=num_resumed)


def _append(journal: Path, model: LoadedModel, inputs: Sequence[Path], num_done: int) -> None:
    """Classify the images after the first `num_done` and append their rows to the journal, with a progress bar."""
    items = itertools.islice(read_items(inputs), num_done, None)
    tasks = iter(lambda: list(itertools.islice(items, IMAGES_PER_TASK)), [])
    total = None if any(path.suffix.lower() in (".csv", ".parquet") for path in inputs) else len(inputs)

    def lines(task: list[Item]) -> list[str]:
        return [json.dumps(predict_row(model, item)) + "\n" for item in task]

    with (
        journal.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(available_cores()) as pool,
        bar(None, "Scoring", "images", total=total, initial=num_done) as progress,
    ):
        for done in bounded_map(pool, lines, tasks, 2 * available_cores()):
            file.writelines(done)
            progress.update(len(done))


def predict_row(
    model: LoadedModel,
    item: Item,
    folder: Path | str = "",
    *,
    read: Callable[[bytes | Path, str], np.ndarray] = read_image,
) -> Row:
    """The row of one image (decoded with `read`): its prediction, or its error. A relative path is one in `folder`."""
    path, content = item
    name = path if path.isprintable() else repr(path)
    row: Row = {"path": name, **dict.fromkeys(("label", "probability", "confident", "probabilities", "error"))}
    try:
        source = Path(folder, path) if content is None else content
        prediction = model.classifier.predict(source, name, read=read, with_ood=False)
    except ImageError as error:
        row["error"] = str(error)
    else:
        row |= {
            "label": prediction.label,
            "probability": prediction.probability,
            "confident": model.manifest.is_confident(prediction.probability),
            "probabilities": prediction.probabilities,
        }
    return {**row, "model": model.model_name, "version": model.version, "digest": model.digest}


def bounded_map(
    pool: ThreadPoolExecutor, function: Callable[[Value], Result], values: Iterable[Value], limit: int
) -> Iterator[Result]:
    """`pool.map` with at most `limit` results that are not yet consumed."""
    values, pending = iter(values), deque[Future[Result]]()
    while True:
        pending.extend(pool.submit(function, value) for value in itertools.islice(values, limit - len(pending)))
        if not pending:
            return
        yield pending.popleft().result()


def _start(model: LoadedModel, inputs: Sequence[Path]) -> bytes:
    """The first line of a journal: the version, and a digest of which files are scored, as they are now."""
    try:
        files = [(os.path.abspath(path), (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in inputs]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): start again without it.") from None
    sha256 = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    start = {"model": model.model_name, "version": model.version, "digest": model.digest, "inputs": sha256}
    return json.dumps(start).encode() + b"\n"


def _resume(journal: Path, start: bytes) -> int:
    """Open the journal of the same scoring, without a row that was cut off; returns the number of complete rows."""
    journal.touch()
    with journal.open("rb+") as file:
        first = file.readline()
        if not start.startswith(first):
            raise DataError(f"{journal} is of another version or other images: delete it, or name another --out.")
        num_rows, complete = 0, len(start)
        for line in file:
            if line.endswith(b"\n"):
                num_rows, complete = num_rows + 1, complete + len(line)
        file.seek(0)
        file.write(start)  # complete, if the kill cut it off
        file.truncate(complete)
    return num_rows


def _read_rows(journal: Path) -> Iterator[Row]:
    with journal.open(encoding="utf-8") as file:
        yield from map(json.loads, itertools.islice(file, 1, None))
