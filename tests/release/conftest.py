"""An ONNX export that several files test."""

from pathlib import Path
from typing import Any

import pytest

from vitcifar.release.export import export_onnx


@pytest.fixture(scope="session")
def exported(published: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of version 2's network, exported again with another release id and temperature 1.7."""
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    network = published.networks[2]
    network.temperature.fill_(1.7)
    try:
        export_onnx(network.train(), path, class_names=published.splits.class_names, release_id="again")
        assert network.training  # the mode is restored
    finally:
        network.temperature.fill_(1.0)
        network.eval()
    return path
