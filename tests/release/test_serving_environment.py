"""What a server installs: enough to serve, no torch, and vitcifar itself as a wheel."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.project import ROOT

from vitcifar import __version__
from vitcifar.errors import ReleaseError
from vitcifar.release import serving_environment
from vitcifar.release.serving_environment import PAGE, SERVING, lock, write_wheel

LARGE = re.compile(r"^(torch|torchvision|tensorboard|gradio|nvidia|triton|scikit-learn|scipy|mlflow)\b(?!-)", re.I)
# Imports modules as they are where the lock alone is installed: every other package is hidden.
HIDDEN = """
import importlib.metadata, sys
from packaging.utils import canonicalize_name
installed = {{canonicalize_name(line.split("==")[0]) for line in {lock!r}}}
hidden = {{name for name, dists in importlib.metadata.packages_distributions().items()
          if not {{*installed, "vitcifar"}} & {{canonicalize_name(dist) for dist in dists}}}}
class OnlyTheLock:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, OnlyTheLock())
import {modules}
"""


def test_the_lock_pins_what_is_on_pypi_and_nothing_large():
    lines = lock(SERVING)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert [line for line in lines if LARGE.match(line)] == []
    assert {"mlflow-skinny", "starlette"} <= {line.split("==")[0] for line in lines}
    assert [line for line in lock([*SERVING, *PAGE]) if LARGE.match(line)] == [
        line for line in lock(PAGE) if line.startswith("gradio==")
    ]


@pytest.mark.parametrize(
    ("names", "modules"),
    [
        (SERVING, "vitcifar.cli, vitcifar.serving.app, vitcifar.serving.rest, vitcifar.serving.ray_app"),
        ((*SERVING, *PAGE), "gradio, vitcifar.serving.page.layout"),
    ],
    ids=["REST", "page"],
)
def test_the_lock_is_enough_to_import_what_serves(names: tuple[str, ...], modules: str):
    code = HIDDEN.format(lock=lock(names), modules=modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_package_without_metadata_is_named():
    with pytest.raises(ReleaseError, match="The installation of no-such-package is incomplete"):
        lock(["numpy", "no-such-package"])


def test_equal_code_makes_an_equal_wheel_and_other_code_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "again").mkdir()
    first, again = write_wheel(tmp_path), write_wheel(tmp_path / "again")
    assert first.name == again.name
    assert first.read_bytes() == again.read_bytes()
    copy = tmp_path / "vitcifar"
    shutil.copytree(serving_environment.PACKAGE, copy)
    (copy / "errors.py").write_text((copy / "errors.py").read_text() + "\n")
    monkeypatch.setattr(serving_environment, "PACKAGE", copy)
    assert write_wheel(tmp_path).name != first.name


def test_pip_installs_the_wheel_with_every_file_of_the_package(tmp_path: Path):
    wheel = write_wheel(tmp_path)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel]
    subprocess.run(command, check=True)
    suffixes = {".py", ".css", ".j2", ".js"}
    for path in (ROOT / "vitcifar").rglob("*"):
        if path.suffix in suffixes:
            assert (tmp_path / "site" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    code = "import vitcifar, importlib.metadata as m; print(vitcifar.__file__, m.version('vitcifar'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": "site"}, capture_output=True, text=True
    )
    file, version = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path / "site")
    assert version.startswith(f"{__version__}+serve.h")
