"""A run from training to serving, without a network: it asks nobody outside, and keeps no secret and no home path."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import BIN, PLAIN
from support.project import ROOT

USER = "canary-user"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "canary-environment",
    "MLFLOW_TRACKING_USERNAME": "ann",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow",
    "HF_TOKEN": "canary-hub",
}
REMOTE = "https://ann:canary-git-password@127.0.0.1/project.git?token=canary-git-token"
# Python's own record of every connection and every name that is looked up, also of those that fail.
RECORDER = """
import os, sys

def record(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        where = args[0] if event.startswith("socket.get") else args[1]
        host = where[0] if isinstance(where, tuple) else where
        with open(os.environ.get("CONTACTS", os.devnull), "a") as file:
            file.write(f"{host}\\n")

sys.addaudithook(record)
"""
SERVE = """
import base64, sys, httpx
from pathlib import Path
from vitcifar import tracking
from vitcifar.registry.registry import Registry
from vitcifar.serving.app import launch
tracking.connect()
page = launch(Registry("vitcifar"), "1", port=0, feedback="sqlite:///feedback.db")
image = next(Path("mlruns").rglob("examples/*.png")).read_bytes()
with httpx.Client(base_url=page.url, trust_env=False, timeout=60) as client:
    answers = [client.post("/v1/predict", files={"image": image}), client.get("/health"), client.get("/config")]
    answers.append(client.post("/v1/feedback", params={"verdict": "right"}, files={"image": image}))
    answers.append(client.get("/metrics"))
    answers += [client.post("/v1/predict", files={"image": image[:90]}), client.get("/v1/monitor"), client.get("/")]
    call = {"data": [{"url": "data:image/png;base64," + base64.b64encode(image).decode()}, "1"]}
    event = client.post("/gradio_api/call/predict", json=call).json()["event_id"]
    answers.append(client.get(f"/gradio_api/call/predict/{event}"))
    Path("answers").write_bytes(b"\\n".join(answer.content for answer in answers))
    print([answer.status_code for answer in answers])
page.close()
"""


def without_route() -> list[str]:
    """What runs a command in a namespace whose only network is loopback, where that is allowed; else nothing."""
    words = ["unshare", "--map-root-user", "--net", "bash", "-c", 'ip link set lo up && exec "$@"', "-"]
    if not shutil.which("unshare") or not shutil.which("ip") or subprocess.run([*words, "true"]).returncode:
        return []
    return words


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder below a home in which a clone of the project was trained, registered and served."""
    home = tmp_path_factory.mktemp("home") / USER
    project, folder = home / "project", home / "work"
    folder.mkdir(parents=True)
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("the project is not in a git checkout")
    for name in tracked.stdout.splitlines():
        if not name.startswith(("tests/", "docs/", "benchmarks/")) and (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(project)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"], ["remote", "add", "origin", REMOTE]):
        subprocess.run([*git, *words], check=True)
    (home / "recorder").mkdir()
    (home / "recorder/sitecustomize.py").write_text(RECORDER)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | SECRETS
    environ |= {"HOME": str(home), "USER": USER, "LOGNAME": USER, "CONTACTS": str(home / "contacts")}
    environ |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "VITCIFAR_CACHE": str(home / "cache")}
    environ |= {"PYTHONPATH": str(home / "recorder"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    parameters = [word for name, value in PLAIN.items() for word in ("-P", f"{name}={value}")]
    train = ["mlflow", "run", str(project), "--env-manager", "local", *parameters]
    wrong = [
        "mlflow",
        "run",
        str(project),
        "--env-manager",
        "local",
        "-P",
        "preset=digits",
        "-P",
        "epochs=1;touch made",
    ]
    python = {"PYTHONPATH": f"{home / 'recorder'}{os.pathsep}{project}"}
    for name, words, more, code in (
        ("train", train, {}, 0),
        ("serve", [sys.executable, "-c", SERVE], {**python, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}, 0),
        ("wrong", wrong, {}, 1),
    ):
        done = subprocess.run(
            [*without_route(), *words], cwd=folder, env=environ | more, capture_output=True, text=True, timeout=900
        )
        (folder / f"{name}.log").write_text(done.stdout + done.stderr)
        assert done.returncode == code, (name, (done.stdout + done.stderr)[-3000:])
    yield home


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a folder, and what is in those that are zip files."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            yield name, path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    yield from ((f"{name}/{one.filename}", archive.read(one)) for one in archive.infolist())


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_training_registering_and_serving_ask_nobody_outside_of_this_machine(workspace: Path) -> None:
    if not without_route():
        pytest.skip("a namespace without a route is not allowed here")
    hosts = set((workspace / "contacts").read_text().splitlines())
    own = {"127.0.0.1", "::1", "localhost", "None", "", "0.0.0.0", os.uname().nodename}
    assert "127.0.0.1" in hosts, "the recorder works"
    assert {host for host in hosts if host not in own and not host.startswith("/")} == set()


def test_no_secret_is_in_a_database_an_artifact_a_log_or_an_answer(workspace: Path) -> None:
    kept = dict(contents(workspace / "work"))
    kept |= {f"cache/{name}": content for name, content in contents(workspace / "cache")}
    assert {"mlflow.db", "feedback.db", "answers", "train.log", "serve.log", "wrong.log"} <= set(kept)
    secrets = [b"canary-environment", b"canary-mlflow", b"canary-hub", b"canary-git-password", b"canary-git-token"]
    assert [(name, secret) for name, content in kept.items() for secret in secrets if secret in content] == []


def test_no_released_file_has_a_home_path_or_the_name_of_a_user(workspace: Path) -> None:
    (manifest,) = (workspace / "work/mlruns").rglob("release.json")
    released = dict(contents(manifest.parent))
    assert any(name.endswith(".onnx") for name in released) and any(".pt2/" in name for name in released)
    assert any(name.endswith("requirements.txt") for name in released)
    personal = [USER.encode(), str(workspace.parent).encode(), sys.prefix.encode(), str(ROOT).encode(), b"/home/"]
    assert [(name, path) for name, content in released.items() for path in personal if path in content] == []


def test_an_entry_that_is_typed_wrong_fails_and_does_nothing_else(workspace: Path) -> None:
    assert not list(workspace.rglob("made"))
    log = (workspace / "work/wrong.log").read_text()
    assert "Invalid value for '--epochs'" in log and "failed" in log
