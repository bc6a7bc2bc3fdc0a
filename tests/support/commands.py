"""The real `vitcifar` and `mlflow` commands, as a user types them."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
from support.project import ROOT

BIN = Path(sys.executable).parent


QUICK = {"preset": "digits", "train_per_class": "20", "validation_per_class": "5", "test_per_class": "5", "epochs": "2"}


PLAIN = {**QUICK, "promote_to": "none", "analysis": "none", "benchmark_runs": "0"}


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What a person's shell has with the virtual environment activated, and a store and cache of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    kept["PATH"] = f"{BIN}{os.pathsep}{kept['PATH']}"
    kept["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    kept["VITCIFAR_CACHE"] = str(folder / "cache")
    return {**kept, **more}


def vitcifar(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mlproject", *words]
    more["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True)


def mlflow_run(folder: Path, *words: str, entry: dict[str, str], **more: str) -> subprocess.CompletedProcess:
    parameters = [word for name, value in entry.items() for word in ("-P", f"{name}={value}")]
    command = [BIN / "mlflow", "run", str(ROOT), *words, *parameters]
    return subprocess.run(command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True)


def options(settings: dict[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]


def client_of(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
