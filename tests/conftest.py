"""Fixtures: toy ONNX files, images as bytes, servers, and a registry with two published versions."""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.made import make_once
from support.toys import Published, make_image, make_onnx, publish_two, read_published, settle

from vitcifar.cli.options import without_gc

# Set before torch is imported: two test files run at a time, and busy-waiting threads would slow each other down.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG = ("test_resume", "test_pipeline", "test_journal")  # the slowest files start first: both workers end together


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    with without_gc():  # every test file is imported: 10 s less in each worker
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)
    if os.environ.get("CI_NIGHTLY") != "1":
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with CI_NIGHTLY=1"))


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of who may be promoted time a file often, and not for its time."""
    if latency := sys.modules.get("vitcifar.release.latency"):
        monkeypatch.setattr(latency, "REST_SECONDS", 0.0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own, where a test does not name another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITCIFAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def toy_onnx(tmp_path: Path) -> Path:
    """The ONNX file of a toy release that tells red, green and blue images apart."""
    return make_onnx(tmp_path / "toy.onnx")


@pytest.fixture
def image() -> Callable[..., bytes]:
    """`image("red", size=(w, h), kind="PNG")` -> the bytes of a file."""
    return make_image


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, mounted."""
    path = tmp_path / "small disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if os.name != "posix" or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, new_store: Path) -> Iterator[tuple[str, Path]]:
    """`mlflow server` on loopback, and the folder of its database; clients see artifacts through its proxy alone."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(new_store, folder / "empty.db")
    with contextlib.closing(sqlite3.connect(folder / "empty.db")) as store, store:
        store.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0'")
    shutil.copy(folder / "empty.db", folder / "server.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept")]
    command += ["--allowed-hosts", f"127.0.0.1:{port},localhost:{port}"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 240  # a busy machine takes more than a minute
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", folder
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for temporary files: the doctor finds those that any killed process left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)  # read TMPDIR again
        yield


def copy_store(source: Path, target: Path) -> None:
    """Copy the database of a store, also into one that a server has open."""
    with contextlib.closing(sqlite3.connect(source)) as read, contextlib.closing(sqlite3.connect(target)) as written:
        read.backup(written)


@pytest.fixture(scope="module")
def server(mlflow_server: tuple[str, Path]) -> str:
    """The address of the MLflow server, with nothing in it."""
    address, folder = mlflow_server
    copy_store(folder / "empty.db", folder / "server.db")
    return address


@pytest.fixture(scope="module", params=["sqlite", "server"])
def workspace(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, new_store: Path
) -> Iterator[Path]:
    """An empty store of each kind in turn, connected to; a folder to work in."""
    from vitcifar import tracking

    folder = tmp_path_factory.mktemp("place")
    if request.param == "sqlite":
        shutil.copy(new_store, folder)
    uri = f"sqlite:///{folder}/mlflow.db" if request.param == "sqlite" else request.getfixturevalue("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("VITCIFAR_CACHE", str(folder / "cache"))
        tracking.connect(uri)
        yield folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Two published versions (random weights, with a head that is not zero). Use `registry` to open them."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            publish_two(folder, patch)

    return read_published(make_once("published", tmp_path_factory, make))


@pytest.fixture
def registry(published: Published, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The registry of `published`, connected; afterwards its champion is version 1, and added versions are deleted."""
    from vitcifar.registry.registry import Registry

    settle(published.folder, monkeypatch)
    opened = Registry(published.model_name)
    yield opened
    opened.client.set_registered_model_alias(published.model_name, "champion", "1")
    for version in opened.client.search_model_versions(f"name = '{published.model_name}'"):
        if int(version.version) not in published.networks:
            opened.client.delete_model_version(published.model_name, version.version)


@pytest.fixture
def own_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases are made without torch's exporter."""
    from support.releases import export_own_graph

    export_own_graph(monkeypatch)


@pytest.fixture(scope="session")
def new_store(tmp_path_factory):
    """A tracking store with nothing in it: making one takes seconds, copying it does not."""
    from vitcifar import stores

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)  # where MLflow will put the files of its experiment Default
            stores.create_store(folder / "mlflow.db")

    return make_once("store", tmp_path_factory, make) / "mlflow.db"


@pytest.fixture
def folder(tmp_path, new_store):
    """An empty folder but for a new store, where a test works by itself."""
    shutil.copy(new_store, tmp_path)
    return tmp_path
