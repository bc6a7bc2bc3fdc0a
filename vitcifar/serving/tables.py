"""The tables of batch scoring: what lists or holds the images, and what the predictions are written into."""

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcifar.data.image import known_endings
from vitcifar.errors import DataError

if TYPE_CHECKING:
    from pyarrow import DataType, MapArray, Schema
    from pyarrow.parquet import ParquetFile

FORMATS = (".parquet", ".csv", ".jsonl")
PATH_COLUMNS = ("path", "file", "filename")  # of a list of images: the first of these that it has
CONTENT_COLUMN = "content"  # of a parquet file with the images' bytes, as Spark's binaryFile writes it
ROWS_PER_GROUP = 1000  # rows in memory when a table is written
IMAGES_PER_BATCH = 32  # images in memory when a parquet file is read
COLUMNS = ("path", "label", "probability", "confident", "probabilities", "error", "model", "version", "digest")

Row = dict[str, Any]  # with COLUMNS
Item = tuple[str, bytes | None]  # a path, and the bytes of the file if they are not to be read from there


def find_inputs(sources: Sequence[str]) -> list[Path]:
    """The files to score, in order: images as they are named, those in a folder (at any depth) by path, and lists.

    A folder whose name ends with .parquet is a list in parts. Raises DataError for a source that does not exist, and
    for a folder without images.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            suffixes = (".parquet",) if source.suffix.lower() == ".parquet" else known_endings()
            inside = (path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
            if not (files := sorted(inside, key=str)):
                raise DataError(f"{source} holds no images: expected files that end with {', '.join(suffixes)}.")
            found += files
        elif source.exists():
            found.append(source)
        else:
            raise DataError(f"There is no file or folder {source}: name images, a folder, a .csv or a .parquet file.")
    return found


def read_items(inputs: Iterable[Path]) -> Iterator[Item]:
    """The images to score: an image itself, or what a list names. Raises DataError for a list that cannot be read."""
    for path in inputs:
        if path.suffix.lower() == ".csv":
            yield from ((str(path.parent / name), None) for name in _read_csv(path))
        elif path.suffix.lower() == ".parquet":
            yield from _read_parquet(path)
        else:
            yield str(path), None


def _read_csv(path: Path) -> Iterator[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            column = find_column(path, rows.fieldnames or ())
            for row in rows:
                yield row[column] or ""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV file ({error}): save it again as UTF-8.") from None


def _read_parquet(path: Path) -> Iterator[Item]:
    import pyarrow

    with open_parquet(path) as file:
        column = find_column(path, file.schema_arrow.names)
        columns = [column, *({CONTENT_COLUMN} & set(file.schema_arrow.names))]
        try:
            for batch in file.iter_batches(batch_size=IMAGES_PER_BATCH, columns=columns):
                for row in batch.to_pylist():
                    name, content = str(row[column] or ""), row.get(CONTENT_COLUMN)
                    yield (str(path.parent / name) if content is None else name), content
        except (OSError, pyarrow.ArrowException) as error:
            raise _unreadable(path, error) from None


def open_parquet(path: Path) -> "ParquetFile":
    """Open a list of images. Raises DataError when it is no parquet file, or its column `content` holds no bytes."""
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None
    names, types = file.schema_arrow.names, pyarrow.types
    if CONTENT_COLUMN in names:
        kind = file.schema_arrow.field(CONTENT_COLUMN).type
        if not (types.is_binary(kind) or types.is_large_binary(kind) or types.is_null(kind)):
            raise DataError(f"The column {CONTENT_COLUMN!r} of {path} is {kind}: expected the bytes of image files.")
    return file


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as a parquet file ({error}): write it again.")


def find_column(path: Path | str, names: Sequence[str]) -> str:
    """The column of a list that holds the paths. Raises DataError without one."""
    for name in PATH_COLUMNS:
        if name in names:
            return name
    raise DataError(f"{path} has no column of paths ({', '.join(names)}): name one {PATH_COLUMNS[0]!r}.")


def check_new_table(path: Path) -> None:
    """Raise DataError for a table of an unknown format, one that exists, or one in a folder that does not."""
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path} has an unknown format: name a file that ends with {', '.join(FORMATS)}.")
    if path.exists():
        raise DataError(f"{path} exists: delete it, or name another file with --out.")
    if not path.parent.is_dir():
        raise DataError(f"{path} cannot be written (there is no folder {path.parent}): name another file with --out.")


def write_table(rows: Iterable[Row], path: Path) -> tuple[int, int]:
    """Write rows in the format of the suffix, whole or not at all; returns their number and that of the errors."""
    temporary = path.with_name(f"{path.name}.tmp")
    num_rows = num_errors = 0

    def counted() -> Iterator[Row]:
        nonlocal num_rows, num_errors
        for row in rows:
            num_rows, num_errors = num_rows + 1, num_errors + (row["error"] is not None)
            yield row

    try:
        {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}[path.suffix.lower()](
            counted(), temporary
        )
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return num_rows, num_errors


def schema() -> "Schema":
    """The types of COLUMNS in a parquet file."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    kinds = (text, text, number, pyarrow.bool_(), pyarrow.map_(text, number), text, text, pyarrow.int64(), text)
    return pyarrow.schema(dict(zip(COLUMNS, kinds, strict=True)))


def _write_parquet(rows: Iterator[Row], path: Path) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(path, schema()) as writer:
        while group := list(itertools.islice(rows, ROWS_PER_GROUP)):
            columns = {name: [row[name] for row in group] for name in COLUMNS}
            columns["probabilities"] = _maps(columns["probabilities"], writer.schema.field("probabilities").type)
            writer.write_table(pyarrow.Table.from_pydict(columns, writer.schema))


def _maps(rows: Sequence[dict[str, float] | None], kind: "DataType") -> "MapArray":
    """Probabilities as a column; a row that has none is null. As lists of pairs they would take twice the time."""
    import pyarrow

    lengths = itertools.accumulate((len(row or ()) for row in rows), initial=0)
    present = [row is not None for row in rows] + [True]
    offsets = [start if there else None for start, there in zip(lengths, present, strict=True)]
    names = [name for row in rows if row for name in row]
    values = [value for row in rows if row for value in row.values()]
    return pyarrow.MapArray.from_arrays(pyarrow.array(offsets, pyarrow.int32()), names, values, kind)


def _write_csv(rows: Iterator[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in rows:
            table.writerow(csv_row(row))


def csv_row(row: Row) -> Row:
    """A row as CSV holds it: the probabilities as JSON."""
    return {**row, "probabilities": row["probabilities"] and json.dumps(row["probabilities"], ensure_ascii=False)}


def _write_jsonl(rows: Iterator[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
