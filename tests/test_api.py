"""The Python API: `import vitcifar`, train, load, predict, and the registry."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.toys import Published, settle

import vitcifar
from vitcifar.errors import ConfigError, GateError, RegistryError, TrackingError


def test_the_public_surface_is_exactly_this():
    assert vitcifar.__all__ == ["__version__", "load", "registry", "train"]
    assert all(getattr(vitcifar, name) for name in vitcifar.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'deploy'"):
        _ = vitcifar.deploy  # type: ignore[attr-defined]


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "mlflow", "numpy", "onnxruntime", "gradio"}
    code = f"import sys, vitcifar; vitcifar.registry; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_train_load_and_promote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settle(tmp_path, monkeypatch)
    small = {"train_per_class": 5, "validation_per_class": 2, "test_per_class": 2, "analysis": "none"}
    trained = vitcifar.train(preset="digits", epochs=1, benchmark_runs=0, promote_to="none", **small)
    assert (trained.model_name, trained.version) == ("vitcifar", 1)
    registry = vitcifar.registry("vitcifar")
    with pytest.raises(GateError, match="accuracy"):
        registry.promote(1, min_accuracy=1.0)
    assert registry.promote(1, force=True, reason="the first").event.forced  # at chance after one epoch
    assert registry.aliases() == {"champion": 1}
    assert [event.reason for event in registry.history("champion")] == ["the first"]
    with pytest.raises(RegistryError, match="vitcifar promote"):
        registry.rollback(reason="there is no previous version")
    model = vitcifar.load("models:/vitcifar@champion")
    image = np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "digit.png")
    data = (tmp_path / "digit.png").read_bytes()
    one, *others = model.predict([image, tmp_path / "digit.png", str(tmp_path / "digit.png"), data])
    assert all(other.probabilities == pytest.approx(one.probabilities) for other in others)
    assert one.label == model.predict(image).label == next(iter(one.probabilities))


def test_what_cannot_be_is_said(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="There is no preset 'imagenet'"):
        vitcifar.train(preset="imagenet")
    with pytest.raises(TrackingError, match="There is no tracking store"):
        vitcifar.registry("toy", tracking_uri=f"sqlite:///{tmp_path}/none.db")
    settle(published.folder, monkeypatch)
    with pytest.raises(RegistryError, match="'models:/toy' is not the URI of a version"):
        vitcifar.load("models:/toy")
    with pytest.raises(RegistryError, match="toy has no version '7'"):
        vitcifar.load("models:/toy/7")
    assert [version.number for version in vitcifar.registry("toy").list()] == [2, 1]
