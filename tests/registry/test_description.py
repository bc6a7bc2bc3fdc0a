"""What MLflow's pages show of a model and its versions, read back through MLflow."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import pytest
from support.project import ROOT
from support.scores import add_version, scores
from support.toys import Published

from vitcifar.config import TrainConfig
from vitcifar.errors import GateError
from vitcifar.registry.description import MAX_LENGTH, is_ours
from vitcifar.registry.registry import Registry
from vitcifar.serving.app import bind

CONFIG = {"data": "digits", "arch": "vit_tiny", "weights": "none", "train_layers": "all", "seed": 0}


@pytest.fixture(scope="module")
def registry(workspace: Path) -> Registry:
    """Version 1 is the champion, 2 differs in its seed and is better, 3 is rejected."""
    for seed, right in enumerate((360, 392, 150)):
        counts = {split: {"red": 10, "green": 10} for split in ("test", "train", "validation")}
        more = {"config": {**CONFIG, "seed": seed}, "counts": counts}
        add_version(workspace, f"seed{seed}", scores(right, seed=seed), **more)
    registry = Registry("toy")
    registry.promote(1, reason="the first")
    with pytest.raises(GateError):
        registry.promote(3, reason="hope")
    return registry


def shown(number: int | str) -> str:
    return mlflow.MlflowClient().get_model_version("toy", str(number)).description or ""


def test_a_version_says_how_good_it_is_in_its_first_words(registry: Registry) -> None:
    assert shown(1).startswith("90.0% test accuracy (95% interval 86.7% to 92.6%, 400 images), digits, 3 classes.\n")
    for line in (
        "- **Data:** digits; 20 train, 20 validation, 20 test images; fingerprint `ffffffffffff`\n",
        "- **Serves:** `model.onnx` (onnx-fp32), images of any size, resized to 32 x 32\n",
        "- **Trained:** vit_tiny from random weights, layers all, seed 0\n",
    ):
        assert line in shown(1)


def test_a_promotion_changes_the_description_and_a_short_tag(registry: Registry) -> None:
    gates = "champion: passed 4/4"
    assert re.search(rf"- \*\*Gates:\*\* {gates} \(.*Z, \w+: the first\)\n", shown(1))
    assert mlflow.MlflowClient().get_model_version("toy", "1").tags["gates"] == gates
    assert "- **Gates:** not checked\n" in shown(2)
    assert "- **Gates:** champion: rejected 2/5, failed accuracy, champion, calibration (" in shown(3)
    assert "  - FAILED accuracy: 0.3750 (95% interval" in shown(3)


def test_a_version_says_what_changed_against_the_one_before(registry: Registry) -> None:
    assert "Against" not in shown(1)
    better = "- **Against version 1:** better: accuracy 98.0% against 90.0% on the same 400 images (+8.0 points"
    assert better in shown(2) and "; settings: seed 0 -> 1\n" in shown(2)


def test_the_model_says_what_it_is_and_how_it_is_called(registry: Registry) -> None:
    text = mlflow.MlflowClient().get_registered_model("toy").description
    assert text.startswith("Image classifier: vit_tiny fine-tuned by vitcifar for 3 classes (red, green, blue).")
    assert "vitcifar app --version champion --model-name toy\n" in text
    assert "mlflow models serve -m models:/toy@champion --env-manager local" in text
    assert "uint8 (images, height, width, 3)" in text


def test_a_description_that_a_person_wrote_is_kept(registry: Registry, workspace: Path) -> None:
    client = mlflow.MlflowClient()
    client.update_model_version("toy", "2", shown(2).replace("98.0%", "98%, I checked"))
    client.update_registered_model("toy", "Ours.")
    registry.promote(2, reason="better")
    assert "98%, I checked" in shown(2) and "not checked" in shown(2)
    assert client.get_model_version("toy", "2").tags["gates"] == "champion: passed 5/5"
    add_version(workspace, "again", scores(380), config=CONFIG)
    assert client.get_registered_model("toy").description == "Ours."
    client.update_model_version("toy", "2", "")
    registry.promote(2, "canary")
    assert "- **Gates:** canary: passed" in shown(2)


def test_ours_are_told_from_those_of_people(registry: Registry) -> None:
    text = shown(1)
    assert is_ours(text) and is_ours("") and is_ours(" \n")
    for other in ("A note.", text + "A note.", text.replace("90.0", "91.0"), text.rpartition("<!--")[0]):
        assert not is_ours(other)


def test_a_description_fits_into_any_database(workspace: Path) -> None:
    config = dict.fromkeys(("data", "arch", "weights", "train_layers"), "x" * 900)
    number = add_version(workspace, "long", scores(360), model_name="long", config=config)
    text = mlflow.MlflowClient().get_model_version("long", str(number)).description
    assert len(text) <= MAX_LENGTH and is_ours(text)


def test_a_store_that_refuses_a_description_does_not_stop_a_promotion(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise mlflow.exceptions.MlflowException("read only")

    monkeypatch.setattr(registry.client, "update_model_version", refuse)
    with pytest.warns(UserWarning, match="MLflow's page of toy 1 is not up to date: .*read only"):
        registry.promote(1, "reviewed", require="none", force=True, reason="again")
    assert registry.aliases()["reviewed"] == 1


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, "it ended"
            time.sleep(0.2)
    raise AssertionError(f"{url} does not respond")


def test_the_commands_of_a_version_work_as_pasted(published: Published, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(published.uri)
    (block,) = re.findall(r"```bash\n(.*?)```", shown(1), re.DOTALL)
    export, show, app, serve = block.splitlines()
    assert export == f"export MLFLOW_TRACKING_URI={shlex.quote(published.uri)}"
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environ.pop("MLFLOW_TRACKING_URI", None)

    done = subprocess.run(
        ["bash", "-c", f"{export}\n{show}"], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.stdout.startswith("# toy 1\n"), done.stderr
    for command, path in ((app, "/health"), (serve, "/ping")):
        with bind("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
        command = command.replace("--port 5001", "") + f" --port {port}"  # another test may use that port
        with subprocess.Popen(
            ["bash", "-c", f"{export}\n{command}"],
            cwd=tmp_path,
            env=environ,
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                wait_for(f"http://127.0.0.1:{port}{path}", process)
            finally:
                os.killpg(process.pid, signal.SIGTERM)


def test_every_setting_that_a_description_names_exists() -> None:
    assert set(CONFIG) <= set(TrainConfig.__dataclass_fields__)
