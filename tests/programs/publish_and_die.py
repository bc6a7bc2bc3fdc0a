"""Publishes a small network in processes that end themselves with SIGKILL: publish_and_die.py [FOLDER POINT]...

The network, its export and MLflow's flavor are replaced by a toy ONNX file: the real ones take 20 seconds, and only
the order of the steps matters here. The processes are forked before any of them opens its store, so one start serves
all.
"""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
from mlflow.models import Model

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.releases import publish
from support.toys import COLOURS, make_onnx

from vitcifar import tracking
from vitcifar.config import TrainConfig
from vitcifar.registry import registration
from vitcifar.release import build
from vitcifar.release.manifest import LOADER_MODULE, Manifest, write_manifest
from vitcifar.release.parity import Parity

OWNERS: dict[str, tuple[Any, str]] = {
    "parity": (build, "check_parity"),
    "storing": (mlflow.MlflowClient, "log_model_artifacts"),
    "creating the model": (mlflow.MlflowClient, "create_registered_model"),
    "creating the version": (mlflow.MlflowClient, "create_model_version"),
    "linking": (registration, "link"),
}


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def store_some(client: mlflow.MlflowClient, model_id: str, folder: str, *_: object) -> None:
    for name in ("MLmodel", "release.json"):
        client.log_model_artifact(model_id, str(Path(folder) / name))
    die()


def save_model(
    path: str, mlflow_model: Model, staged: Path, release: Manifest, digests: list[str] | None = None, **_: object
) -> None:
    folder = Path(path)
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "model.pt2").write_bytes(b"pt2")
    for file in staged.iterdir():
        file.rename(folder / file.name)
    mlflow_model.add_flavor("python_function", loader_module=LOADER_MODULE)
    mlflow_model.save(str(folder / "MLmodel"))
    digest = write_manifest(release, folder)
    if digests is not None:
        digests.append(digest)


def replace_export(run_id: str) -> None:
    release = Manifest(
        release_id="killed",
        model_name="toy",
        class_names=COLOURS,
        image_size=32,
        temperature=1.0,
        fingerprint="f" * 64,
        run_id=run_id,
        checks={"test": {"accuracy": 0.5}},
    )
    parity = Parity(max_logit_difference=0.0, num_changed=0, num_images=1, worst_id="x")
    build.describe = lambda *_, **__: release
    build.trace = lambda network: None
    build.export_onnx = lambda network, path, **_: make_onnx(path, release_id="killed")
    build.check_parity = lambda *_, **__: parity
    build.put_examples = lambda test, folder: folder.mkdir()
    build.flavor.save_model = save_model


def publish_in(folder: Path, point: str) -> None:
    """Publish into the store of a folder, up to a point."""
    os.environ |= {"TMPDIR": str(folder / "temporary"), "VITCIFAR_CACHE": str(folder / "cache")}
    os.chdir(folder)
    tracking.connect(f"sqlite:///{folder}/mlflow.db")
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    replace_export(run_id)
    if point == "storing half of the files":
        mlflow.MlflowClient.log_model_artifacts = store_some
    elif point in OWNERS:
        setattr(*OWNERS[point], die)
    blank = SimpleNamespace(images=np.zeros((1, 8, 8, 3), np.uint8))
    splits = SimpleNamespace(train=blank, validation=blank, test=None)
    network = SimpleNamespace(token_merging=0)
    publish(network, splits=splits, evaluation={}, config=TrainConfig(model_name="toy"), run_id=run_id)


def main(words: list[str]) -> None:
    """Prints how each process ended."""
    for folder, point in zip(words[::2], words[1::2], strict=True):
        process = os.fork()
        if not process:
            try:
                publish_in(Path(folder), point)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


main(sys.argv[1:])
