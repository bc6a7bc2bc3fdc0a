"""Spark and Ray write the table of the local engine; workers verify the release and need no torch."""

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pyarrow
import pyarrow.parquet
import pytest
from support.releases import add_version
from support.toys import Published, make_image, settle

from vitcifar import tracking
from vitcifar.errors import DataError, ReleaseError, ServingError
from vitcifar.registry.registry import Registry
from vitcifar.serving import engines
from vitcifar.serving.engines import ShippedRelease, find_parts, ship
from vitcifar.serving.loaded_model import open_version
from vitcifar.serving.score import score


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with a registered toy and images: in a folder, in a list, and in a parquet file in parts."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "photos" / "deep é").mkdir(parents=True)
    for index in range(70):
        path = folder / "photos" / ("deep é" if index % 2 else "") / f"{index}.{'PNG' if index % 3 else 'jpg'}"
        path.write_bytes(make_image(("red", "green", "blue")[index % 3], kind="PNG" if index % 3 else "JPEG"))
    (folder / "photos" / "broken.png").write_bytes(b"not an image")
    (folder / "list.csv").write_text("path\nphotos/2.PNG\nphotos/0.jpg\nphotos/gone.png\n", encoding="utf-8")
    (folder / "stored.parquet").mkdir()
    for part, colours in enumerate((["blue", "red"], ["green"] * 3)):
        images = {"path": [f"s3://bucket/{name}" for name in colours], "content": [make_image(c) for c in colours]}
        pyarrow.parquet.write_table(pyarrow.table(images), folder / "stored.parquet" / f"part-{part}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settle(folder, patch)
        tracking.connect(f"sqlite:///{folder}/mlflow.db")
        add_version(folder, "one")
        yield folder


@pytest.fixture
def release(folder: Path) -> ShippedRelease:
    registry = Registry("toy")
    return ship(registry, registry.show(1))


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """A session of Spark, as spark-submit or a notebook has it."""
    sql = pytest.importorskip("pyspark.sql", reason="PySpark is not installed: pip install -e '.[spark]'")
    if not shutil.which("java"):
        pytest.skip("Java is not installed")
    session = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine."""
    package = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    package.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield package
    package.shutdown()


@pytest.mark.parametrize("engine", ["spark", "ray"])
def test_an_engine_writes_the_table_of_the_local_engine(
    request: pytest.FixtureRequest, folder: Path, release: ShippedRelease, engine: str
) -> None:
    request.getfixturevalue(engine)
    sources, registry = ["photos", "list.csv", "stored.parquet", "photos/0.jpg"], Registry("toy")
    local, out = folder / f"local-{engine}.jsonl", folder / f"{engine}.jsonl"
    score(open_version(registry, 1, num_threads=1), sources, local)
    done = engines.score(release, engine, [*sources, f"file://{folder}/photos"], out)
    expected, lines = local.read_text().splitlines(), out.read_text().splitlines()
    assert lines[: len(expected)] == expected
    assert (done.num_rows, done.num_errors) == (len(lines), 3) == (71 + 3 + 5 + 1 + 71, 3)

    def by_name(rows: list[str]) -> dict[str, Any]:
        parsed = map(json.loads, rows)
        return {Path(row.pop("path")).name: {**row, "error": row["error"] is not None} for row in parsed}

    read_by_engine = lines[len(expected) :]
    assert by_name(read_by_engine) == by_name(expected[:71])
    paths = [json.loads(line)["path"] for line in read_by_engine]
    assert paths == sorted(paths) and str(folder / "photos") in paths[0]


@pytest.mark.parametrize("engine", ["spark", "ray"])
def test_what_fails_in_a_worker_or_in_the_engine_is_one_sentence(
    request: pytest.FixtureRequest, folder: Path, release: ShippedRelease, engine: str
) -> None:
    request.getfixturevalue(engine)
    changed = dataclasses.replace(release, digest="0" * 64)
    with pytest.raises(ServingError, match=r"failed \(.*release.json in the worker .* was changed after it was"):
        engines.score(changed, engine, ["photos/0.jpg"], folder / "changed.csv")
    with pytest.raises(ServingError, match=r"failed \(.*/nowhere"):
        engines.score(release, engine, [f"file://{folder}/nowhere"], folder / "changed.csv")
    assert not list(folder.glob("changed*"))


def test_a_release_is_opened_once_and_verified_before(release: ShippedRelease) -> None:
    assert release.open() is dataclasses.replace(release, files=dict(release.files)).open()
    assert release.open().classifier.num_threads == 1
    engines._opened.clear()
    for name in release.files:
        changed = {**release.files, name: release.files[name] + b" "}
        with pytest.raises(ReleaseError, match="was changed after it was registered"):
            dataclasses.replace(release, files=changed).open()


def test_the_driver_names_local_images_and_lists_and_the_engine_reads_the_rest(folder: Path) -> None:
    sources = ["photos/0.jpg", "list.csv", "stored.parquet", "s3://bucket/photos", "hdfs://host/a.parquet"]
    parts = [(part.kind, part.sources) for part in find_parts(sources)]
    stored = [str(folder / "stored.parquet" / f"part-{part}.parquet") for part in range(2)]
    assert parts == [
        ("named", ["photos/0.jpg", "list.csv"]),
        ("parquet", stored),
        ("files", ["s3://bucket/photos"]),
        ("parquet", ["hdfs://host/a.parquet"]),
    ]
    with pytest.raises(DataError, match="There is no file or folder nowhere"):
        find_parts(["nowhere"])


@pytest.mark.parametrize("engine", ["spark", "ray"])
def test_an_engine_that_is_not_installed_is_said(
    folder: Path, release: ShippedRelease, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setitem(sys.modules, engines.ENGINES[engine], None)
    with pytest.raises(ServingError, match=rf"{engine} is not installed: type pip install 'vitcifar\[{engine}\]'"):
        engines.score(release, engine, ["photos"], folder / "none.csv")


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="PySpark is not installed")
def test_spark_without_java_is_said(folder: Path, release: ShippedRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(ServingError, match="Spark needs Java, which is not installed: install Java 17"):
        engines.score(release, "spark", ["photos"], folder / "none.csv")


def test_mlflows_own_spark_function_returns_the_columns_of_the_signature(spark: Any, published: Published) -> None:
    """As a notebook calls it, without the types of the result: the signature has them."""
    from pyspark.sql.functions import struct

    mlflow.set_tracking_uri(published.uri)
    images = [make_image(colour) for colour in ("red", "green", "blue")]
    expected = mlflow.pyfunc.load_model("models:/toy/1").predict({"image": images})
    rows = [(f"{number}.png", bytearray(image)) for number, image in enumerate(images)]
    table = spark.createDataFrame(rows, "path string, image binary")
    predict = mlflow.pyfunc.spark_udf(spark, "models:/toy/1", env_manager="local")
    for column in (predict(), predict("image"), predict(struct("image")), predict(struct("path", "image"))):
        rows = table.select(column.alias("found")).select("found.*").collect()
        assert [row["label"] for row in rows] == [row["label"] for row in expected]
        assert [row["probabilities"] for row in rows] == [pytest.approx(row["probabilities"]) for row in expected]
        assert {(row["model"], row["version"]) for row in rows} == {("toy", 1)}
