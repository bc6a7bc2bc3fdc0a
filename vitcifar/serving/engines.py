"""Batch scoring on several machines: Spark or Ray distribute the images, and every row is that of the local engine.

The driver ships the verified ONNX file with its manifest; each worker process verifies it again and opens it once, with
one thread and without torch. Workers return rows as lines of JSON, which the driver writes into one table in order.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow

from vitcifar.data.image import known_endings
from vitcifar.errors import DataError, ServingError
from vitcifar.registry.registry import Registry, Version
from vitcifar.release.manifest import MANIFEST_FILE, verify
from vitcifar.release.served import open_served
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.score import Scored, predict_row
from vitcifar.serving.tables import (
    CONTENT_COLUMN,
    IMAGES_PER_BATCH,
    Row,
    check_new_table,
    find_column,
    find_inputs,
    open_parquet,
    read_items,
    write_table,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ENGINES = {"spark": "pyspark", "ray": "ray"}  # and the package that the extra of this name installs
MIN_BLOCK_ROWS, MAX_BLOCKS = 16, 4096  # named images that one task of Ray classifies
ERROR_LINE = re.compile(r"^(?!ray\.)(?:[\w.]+(?:Error|Exception): |\[[A-Z_.0-9]+\] ).*", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShippedRelease:
    """What a worker needs of a version: the file that serves, and those that prove it."""

    model_name: str
    version: int
    digest: str
    files: dict[str, bytes]

    def open(self) -> LoadedModel:
        """Verify the files against the digest and open them; once per process. Raises ReleaseError."""
        if self.digest not in _opened:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in self.files.items():
                    (Path(folder) / name).write_bytes(content)
                absent = frozenset(json.loads(self.files[MANIFEST_FILE])["files"]) - self.files.keys()
                manifest = verify(folder, digest=self.digest, optional=absent, where=f"the worker (pid {os.getpid()})")
                classifier = open_served(manifest, num_threads=1)
            _opened[self.digest] = LoadedModel(
                model_name=self.model_name,
                version=self.version,
                manifest=manifest,
                classifier=classifier,
                digest=self.digest,
            )
        return _opened[self.digest]

    def lines(self, batch: pyarrow.RecordBatch | pyarrow.Table, folder: str) -> pyarrow.Array:
        """The rows of a batch with the columns `path` and `content`, as lines of JSON."""
        model = self.open()
        items = zip(batch["path"].to_pylist(), batch["content"].to_pylist(), strict=True)
        return pyarrow.array([json.dumps(predict_row(model, item, folder)) for item in items])


_opened: dict[str, LoadedModel] = {}


def ship(registry: Registry, version: Version) -> ShippedRelease:
    """Pull and verify a version, and read what workers need of it. Raises RegistryError and ReleaseError."""
    manifest = registry.pull_version(version, signed=True)
    files = {name: manifest.path(name).read_bytes() for name in (MANIFEST_FILE, "MLmodel", manifest.serves)}
    digest = registry.digest_of(version)
    return ShippedRelease(model_name=version.model_name, version=version.number, digest=digest, files=files)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive sources of one kind: `named` images, `files` of a folder by URI, or `parquet` with contents."""

    kind: str
    sources: list[str]


def find_parts(sources: Sequence[str]) -> list[Part]:
    """What the driver names and what the workers read; raises DataError as `find_inputs` does.

    Images on this machine, and lists of them, are named by the driver. URIs, and parquet files that hold the contents,
    are read by the engine alone.
    """
    parts: list[Part] = []
    for source in sources:
        if "://" in source:
            kind = "parquet" if source.lower().rstrip("/").endswith(".parquet") else "files"
            parts.append(Part(kind=kind, sources=[source]))
            continue
        for kind, inputs in itertools.groupby(find_inputs([source]), _kind):
            paths = [os.path.abspath(path) if kind == "parquet" else str(path) for path in inputs]
            if kind == "named" and parts and parts[-1].kind == "named":
                parts[-1].sources.extend(paths)
            else:
                parts.append(Part(kind=kind, sources=paths))
    return parts


def _kind(path: Path) -> str:
    if path.suffix.lower() != ".parquet":
        return "named"
    with open_parquet(path) as file:
        return "parquet" if CONTENT_COLUMN in file.schema_arrow.names else "named"


def score(release: ShippedRelease, engine: str, sources: Sequence[str], out: Path, *, master: str = "auto") -> Scored:
    """Classify the images of `sources` with an engine into the table that `score.score` would write.

    `master` is Spark's. Raises DataError for inputs or a table that cannot be used, and ServingError when the engine
    is not installed, does not start or fails.
    """
    check_new_table(out)
    _check_installed(engine)
    parts = find_parts(sources)
    rows = _score_with_spark(release, parts, master) if engine == "spark" else _score_with_ray(release, parts)
    try:
        with contextlib.closing(rows):
            num_rows, num_errors = write_table(rows, out)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror or error}): name another file with --out.") from None
    return Scored(out=out, num_rows=num_rows, num_errors=num_errors)


def _check_installed(engine: str) -> None:
    if importlib.util.find_spec(ENGINES[engine]) is None:
        raise ServingError(f"The engine {engine} is not installed: type pip install 'vitcifar[{engine}]'.")
    if engine == "spark" and not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise ServingError("Spark needs Java, which is not installed: install Java 17, or set JAVA_HOME to it.")


def _failed(engine: str, error: Exception) -> ServingError:
    text = str(error)
    if "No module named 'vitcifar'" in text:
        return ServingError(f"A worker of {engine} has no vitcifar: install it on every worker, with its requirements.")
    reason = (ERROR_LINE.findall(text) or text.splitlines() or [type(error).__name__])[-1]
    return ServingError(f"{engine} failed ({reason.strip()}): its log, above, says more.")


@contextlib.contextmanager
def _spark(master: str) -> "Iterator[SparkSession]":
    """The session of spark-submit or of a notebook, or a new one, which is stopped afterwards."""
    from pyspark.sql import SparkSession

    before = SparkSession.getActiveSession()
    builder = SparkSession.builder.appName("vitcifar score")
    spark = (builder if master == "auto" else builder.master(master)).getOrCreate()
    context = spark.sparkContext
    if str(context.master).startswith("local") and "PYSPARK_PYTHON" not in os.environ:
        context.pythonExec = sys.executable  # instead of the first python3 of the PATH
    try:
        yield spark
    finally:
        if before is None:
            spark.stop()


def _score_with_spark(release: ShippedRelease, parts: Sequence[Part], master: str) -> Generator[Row, None, None]:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        with _spark(master) as spark:
            spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", IMAGES_PER_BATCH)
            shipped, folder = spark.sparkContext.broadcast(release), os.getcwd()

            def predict(batches: Iterator[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
                for batch in batches:
                    columns = [batch["file"], batch["index"], shipped.value.lines(batch, folder)]
                    yield pyarrow.RecordBatch.from_arrays(columns, ["file", "index", "line"])

            for part in parts:
                images = _spark_images(spark, part)
                # Kept, since sorting reads its input twice.
                lines = images.mapInArrow(predict, "file string, index long, line string").persist()
                for row in lines.orderBy("file", "index").select("line").toLocalIterator():
                    yield json.loads(row.line)
                lines.unpersist()
    except (PySparkException, Py4JError) as error:
        raise _failed("Spark", error) from error


def _spark_images(spark: "SparkSession", part: Part) -> "DataFrame":
    """The images of a part: `path`, `content` (null: a worker reads the file) and, for the order, `file`, `index`."""
    if part.kind == "named":
        rows = [("", index, path, None) for index, (path, _) in enumerate(read_items(map(Path, part.sources)))]
        return spark.createDataFrame(rows, "file string, index long, path string, content binary")
    if part.kind == "parquet":
        table = spark.read.parquet(*part.sources)
        column = find_column(part.sources[0], table.columns)
        return table.selectExpr(
            "_metadata.file_path AS file", "_metadata.row_index AS index", f"`{column}` AS path", CONTENT_COLUMN
        )
    letters = ["".join(f"[{letter}{letter.upper()}]" for letter in suffix[1:]) for suffix in known_endings()]
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
    files = files.option("pathGlobFilter", f"*.{{{','.join(letters)}}}")
    return files.load(part.sources).selectExpr("path AS file", "0L AS index", "path", CONTENT_COLUMN)


def _score_with_ray(release: ShippedRelease, parts: Sequence[Part]) -> Generator[Row, None, None]:
    import ray
    import ray.data

    started = not ray.is_initialized()
    try:
        if started:  # RAY_ADDRESS names a cluster; without it, this machine is one
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
            logging.getLogger("ray.data").setLevel(logging.WARNING)
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        shipped, folder = ray.put(release), os.getcwd()

        def predict(batch: pyarrow.Table) -> pyarrow.Table:
            return pyarrow.table({"line": ray.get(shipped).lines(batch, folder)})

        for part in parts:
            images = _ray_images(part)
            lines = images.map_batches(predict, batch_format="pyarrow", batch_size=IMAGES_PER_BATCH)
            for row in lines.iter_rows():
                yield json.loads(row["line"])
    except (ray.exceptions.RayError, OSError, ValueError) as error:  # the last two from the file systems of URIs
        raise _failed("Ray", error) from error
    finally:
        if started:
            ray.shutdown()


def _ray_images(part: Part) -> Any:
    """The images of a part as a dataset with `path` and `content` (null: a worker reads the file), in order."""
    import ray.data

    if part.kind == "named":
        paths = pyarrow.array([path for path, _ in read_items(map(Path, part.sources))], pyarrow.string())
        table = pyarrow.table({"path": paths, "content": pyarrow.nulls(len(paths), pyarrow.binary())})
        size = max(MIN_BLOCK_ROWS, len(paths) // MAX_BLOCKS + 1)
        return ray.data.from_arrow([table.slice(start, size) for start in range(0, max(1, len(paths)), size)])
    if part.kind == "parquet":
        table = ray.data.read_parquet(part.sources)
        column = find_column(part.sources[0], table.columns())
        return table.select_columns([column, CONTENT_COLUMN]).rename_columns({column: "path"})
    files = ray.data.read_binary_files(part.sources, include_paths=True, file_extensions=[*known_endings()])
    return files.rename_columns({"bytes": CONTENT_COLUMN})
