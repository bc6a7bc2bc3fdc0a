"""Building a release: it records where it comes from, and a failed check stores nothing."""

import dataclasses
from pathlib import Path
from typing import Any

import mlflow
import pytest

from vitcifar.errors import ReleaseError
from vitcifar.release import build
from vitcifar.release.export import export_onnx


def test_release_json_records_where_the_release_comes_from(registry: Any, published: Any) -> None:
    release = registry.pull(1)
    assert release.run_id == published.run_id
    assert release.fingerprint == published.splits.fingerprint == registry.show(1).fingerprint
    assert release.config == dataclasses.asdict(published.config)
    assert release.counts["test"] == dict.fromkeys(published.splits.class_names, 2)
    assert release.environment["packages"]["mlflow"] == mlflow.__version__
    assert release.checks["parity"]["num_images"] == len(published.splits.test) + 18
    assert release.preprocessing["resize"] == "bilinear, antialiased"


def test_a_failed_check_stores_and_registers_nothing(
    registry: Any, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_another(network: Any, path: Path, **more: Any) -> None:
        more.pop("program")
        export_onnx(published.networks[1], path, **more)

    monkeypatch.setattr(build, "export_onnx", export_another)
    before = [version.number for version in registry.list()]
    models = len(mlflow.search_logged_models(output_format="list", filter_string="name = 'release'"))
    with pytest.raises(ReleaseError, match="Nothing was registered"):
        build.build_release(
            published.networks[2],
            splits=published.splits,
            evaluation={},
            config=published.config,
            run_id=published.run_id,
        )
    assert [version.number for version in registry.list()] == before
    assert len(mlflow.search_logged_models(output_format="list", filter_string="name = 'release'")) == models
