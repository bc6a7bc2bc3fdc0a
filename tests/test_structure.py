"""The shape of the project: its rooms, its top level, and what its imports cost."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.project import ROOT, loaded_modules

README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("the project is not in a git checkout")
    return done.stdout.splitlines()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_room_imports_only_rooms_above_it():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_mlproject_is_a_file_and_never_a_folder():
    names = [Path(name).parts[0] for name in tracked()]
    alike = sorted({name for name in names if name.lower().startswith("mlproject")})
    assert alike == ["MLproject", "mlproject.py"]
    assert (ROOT / "MLproject").is_file()
    assert not (ROOT / "mlproject").is_dir()


def test_the_architecture_page_lists_the_top_level_and_the_rooms():
    tree = ARCHITECTURE.split("<!-- tree -->")[1]
    listed = set(re.findall(r"^\s*([\w./-]+)  ", tree, flags=re.MULTILINE))
    top = {name.split("/")[0] + ("/" if "/" in name else "") for name in tracked()}
    rooms = {path.name + ("/" if path.is_dir() else "") for path in (ROOT / "vitcifar").iterdir()}
    rooms -= {"__init__.py", "__pycache__/"}
    assert listed == {name for name in top if not name.startswith(".")} | {".ci/run", ".github/"} | rooms


def test_ci_runs_the_command_that_the_readme_gives():
    command = "pip install -q -e '.[test]' && pytest"
    assert command in README.splitlines()
    assert command in (ROOT / ".ci/run").read_text().splitlines()


@pytest.mark.parametrize("words", [[], ["train"], ["app"], ["promote"]], ids=" ".join)
def test_help_loads_neither_torch_nor_mlflow(words):
    code = f"import mlproject\ntry: mlproject.main({[*words, '--help']})\nexcept SystemExit: pass"
    heavy = {"torch", "torchvision", "mlflow", "numpy", "onnxruntime", "gradio", "PIL", "sklearn"}
    assert not heavy & loaded_modules(code)


def test_importing_any_module_does_nothing(tmp_path):
    code = """
import os, pkgutil, sys, warnings
import mlflow, numpy, onnxruntime, sklearn, torch, torch.utils.tensorboard  # what these do is not ours
import vitcifar
names = [module.name for module in pkgutil.walk_packages(vitcifar.__path__, "vitcifar.")]
import vitcifar.data.torchvision_compat, matplotlib, PIL.Image, optuna
state = lambda: (sorted(os.listdir()), dict(os.environ), list(warnings.filters),
                 str(numpy.random.get_state()), torch.get_rng_state().tolist(), mlflow.get_tracking_uri())
before = state()
for name in names:
    __import__(name)
assert before == state(), [pair for pair in zip(before, state()) if pair[0] != pair[1]]
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert int(done.stdout) == len(list((ROOT / "vitcifar").rglob("*.py"))) - 1


@pytest.mark.parametrize("given", [{}, {"MLFLOW_DISABLE_TELEMETRY": "false"}], ids=["default", "wanted"])
def test_the_telemetry_of_mlflow_is_off_in_every_command_unless_the_environment_says_otherwise(given):
    code = (
        "import contextlib, os\n"
        "from vitcifar.cli import main\n"
        "with contextlib.suppress(Exception):\n"
        "    main(['versions', '--tracking-uri', 'sqlite:////nowhere/mlflow.db'], standalone_mode=False)\n"
        "from mlflow.telemetry.client import get_telemetry_client\n"
        "print(os.environ['MLFLOW_DISABLE_TELEMETRY'], get_telemetry_client())"
    )
    kept = {name: value for name, value in environment().items() if not name.startswith("MLFLOW")}
    done = subprocess.run([sys.executable, "-c", code], env=kept | given, cwd=ROOT, capture_output=True, text=True)
    expected = "false" if given else "true None"
    assert done.stdout.startswith(expected), done.stderr


def test_benchmarks_import_names_that_exist():
    """No other test runs them."""
    for path in (ROOT / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vitcifar."):
                module = ROOT.joinpath(*str(node.module).split("."))
                source = (module / "__init__.py" if module.is_dir() else module.with_suffix(".py")).read_text()
                for alias in node.names:
                    defined = re.search(rf"^(def|class) {alias.name}\b|^{alias.name}\b.* = ", source, re.MULTILINE)
                    assert defined or (module / f"{alias.name}.py").is_file(), f"{path.name}: {alias.name}"


def test_tests_mirror_the_rooms():
    """tests/<room>/test_<file>.py, with a topic after the name where one file of tests would be long."""
    whole_room = {"help", "killed_processes", "old_releases"}  # and not one file of it
    strays = []
    for path in (ROOT / "tests").glob("*/**/test_*.py"):
        room = ROOT / "vitcifar" / path.parent.relative_to(ROOT / "tests")
        modules = [module.stem for module in room.glob("*.py")]
        topic = path.stem.removeprefix("test_")
        if topic not in whole_room and not any(f"{topic}_".startswith(f"{module}_") for module in modules):
            strays.append(str(path.relative_to(ROOT)))
    assert strays == []


FAULTY = {  # the newest version of each with a published vulnerability that concerns it, or with one in its libraries
    "cryptography": "49.0.0",
    "filelock": "3.20.2",
    "gradio": "6.30.0",
    "jinja2": "3.1.5",
    "mlflow": "3.17.1",
    "onnx": "1.21.0",
    "onnxruntime": "1.27.0",
    "Pillow": "12.2.0",
    "python-multipart": "0.0.21",
    "starlette": "1.0.0",
    "tensorboard": "2.20.0",
    "torch": "2.10.0",
    "tqdm": "4.66.2",
}


def test_no_version_with_a_known_vulnerability_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {(found := Requirement(text)).name: found.specifier for text in project["dependencies"]}
    assert not [f"{name} {version}" for name, version in FAULTY.items() if version in allowed[name]]
