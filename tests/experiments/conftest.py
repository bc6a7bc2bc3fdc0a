"""A tracking store for each test of a sweep or of seeds."""

import shutil

import mlflow
import pytest
from support.toys import settle


@pytest.fixture
def store(tmp_path, monkeypatch, new_store, own_graph):
    """A folder with a tracking store of its own, which also gets runs and storages."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(new_store, tmp_path)
    settle(tmp_path, monkeypatch)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)
