"""Publishing killed with SIGKILL at six points: no version is ever half there, and the doctor clears what is left."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitcifar import tracking
from vitcifar.registry.doctor import diagnose, repair
from vitcifar.registry.registry import Registry

# A whole `publish` but for the network: export and pt2 are written by hand, and the process ends itself at a point.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import mlflow
from mlflow.models import Model
sys.path.insert(0, {tests!r})
from support.toys import make_onnx
from support.releases import MLMODEL, make_release
from vitcifar import tracking
from vitcifar.config import TrainConfig
from vitcifar.registry import registry as registering
from vitcifar.release import build as publishing
from vitcifar.release.manifest import LOADER_MODULE, Manifest, write_manifest
from vitcifar.release.parity import Parity

point, uri = sys.argv[1:]
tracking.connect(uri)
client = mlflow.MlflowClient

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def at(name, owner, attribute):
    if point == name:
        setattr(owner, attribute, die)

def save_model(path, mlflow_model, program, staged, release, **_):
    folder = Path(path)
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "model.pt2").write_bytes(b"pt2")
    for file in staged.iterdir():
        file.rename(folder / file.name)
    mlflow_model.add_flavor("python_function", loader_module=LOADER_MODULE)
    mlflow_model.save(str(folder / "MLmodel"))
    write_manifest(release, folder)

run_id = client().create_run("0").info.run_id
release = Manifest(
    release_id="killed", model_name="toy", class_names=("red", "green", "blue"), image_size=32, temperature=1.0,
    fingerprint="f" * 64, run_id=run_id, checks={{"test": {{"accuracy": 0.5}}}},
)
parity = Parity(max_logit_difference=0.0, num_changed=0, num_images=1, worst_id="x")
publishing.describe = lambda *_, **__: release
publishing.trace = lambda network: None
publishing.export_onnx = lambda network, path, **_: make_onnx(path, release_id="killed")
publishing.check_parity = lambda *_: parity
publishing.put_examples = lambda test, folder: folder.mkdir()
publishing.flavor.save_model = save_model
class Splits:
    test = None

stored = client.log_model_artifacts
def store_some(self, model_id, folder, *_):
    for name in ("MLmodel", "release.json"):
        self.log_model_artifact(model_id, str(Path(folder) / name))
    die()

if point == "storing":
    client.log_model_artifacts = store_some
at("proving", publishing, "check_parity")
at("before storing", client, "log_model_artifacts")
at("before naming", client, "create_registered_model")
at("before registering", client, "create_model_version")
at("before linking", registering, "link")
print(registering.publish(None, splits=Splits, evaluation={{}}, config=TrainConfig(model_name="toy"), run_id=run_id))
"""

POINTS = {  # where it is killed: what the doctor finds, and the versions there are after it
    "proving": (["abandoned export"], []),
    "before storing": (["abandoned export", "orphaned model"], []),
    "storing": (["abandoned export", "orphaned model"], []),
    "before naming": (["unregistered release"], [1]),
    "before registering": (["unregistered release"], [1]),
    "before linking": (["unlinked version"], [1]),
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty store that each point gets a copy of."""
    folder = tmp_path_factory.mktemp("empty")
    tracking.create_store(folder / "mlflow.db")
    return str(folder / "mlflow.db")


@pytest.fixture
def store(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "mlflow.db").write_bytes(Path(uri).read_bytes())
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)  # let it read TMPDIR again
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    yield tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.undo()


def publish(point: str, uri: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(tests=str(Path(__file__).parents[1]))
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{program}", point, uri]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_the_doctor_brings_back_whole_releases(point: str, store: str) -> None:
    killed = publish(point, store)
    assert killed.returncode == -9, killed.stderr
    registry, (kinds, numbers) = Registry("toy"), POINTS[point]
    for version in registry.list():  # whatever is registered is whole
        assert registry.pull(version.number, pytorch=True).release_id == "killed"
    found = repair(registry, stale_seconds=0)
    assert [finding.kind for finding in found] == kinds
    assert all(finding.fixed for finding in found)
    assert diagnose(registry, stale_seconds=0) == []
    assert [version.number for version in registry.list()] == numbers
    assert list(Path(os.environ["TMPDIR"]).iterdir()) == []
    for number in numbers:
        assert registry.move_alias("champion", number).after == number


def test_the_next_publishing_goes_well_without_a_doctor(store: str) -> None:
    assert publish("before registering", store).returncode == -9
    done = publish("never", store)
    assert done.returncode == 0, done.stderr
    assert [version.number for version in Registry("toy").list()] == [1]
    assert Registry("toy").move_alias("champion", 1).after == 1
