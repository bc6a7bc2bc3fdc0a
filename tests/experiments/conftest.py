"""A tracking store for each test of a sweep or of seeds."""

import shutil

import mlflow
import pytest
from support.toys import settle

from vitcifar import tracking


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A new tracking store: copying it is quicker than creating one."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    tracking.create_store(path)
    return path


@pytest.fixture
def store(tmp_path, monkeypatch, empty_store):
    """A folder with a tracking store of its own, which also gets runs and storages."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    settle(tmp_path, monkeypatch)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)
