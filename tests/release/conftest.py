"""An ONNX export that several files test."""

import copy
from pathlib import Path
from typing import Any

import pytest
from support.made import make_once

from vitcifar.release.export import export_onnx


@pytest.fixture(scope="session")
def exported(published: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of version 2's network, exported again with another release id and temperature 1.7."""

    def make(folder: Path) -> None:
        network = copy.deepcopy(published.networks[2]).train()
        network.temperature.fill_(1.7)
        names = published.splits.class_names
        export_onnx(network, folder / "model.onnx", class_names=names, release_id="again")
        assert network.training  # the mode is restored

    return make_once("export", tmp_path_factory, make) / "model.onnx"
