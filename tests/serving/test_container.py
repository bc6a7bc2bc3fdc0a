"""The files of `vitcifar container` agree with the server; installed in an empty environment, they serve."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
import yaml
from support.commands import environment
from support.releases import add_version
from support.serving import wait_until
from support.toys import make_image, settle

from vitcifar import cli
from vitcifar.errors import ConfigError
from vitcifar.inference.openvino_session import is_installed
from vitcifar.release.serving_environment import SERVING, lock
from vitcifar.serving.app import bind
from vitcifar.serving.container import write_container
from vitcifar.serving.ray_app import DEFAULTS

READY, LIVE = "/health/ready", "/health/live"


def written(folder: Path, uri: str = "http://models.example:5000", **values: Any) -> dict[str, Any]:
    """The files of a container: the text of the Dockerfile, the parsed YAML files."""
    values = {"version": "champion", "model_name": "My model", "page": False, **values}
    names = write_container(folder, tracking_uri=uri, **values)
    texts = {name: (folder / name).read_text() for name in names if not name.endswith(".whl")}
    return {name: yaml.safe_load(text) if name.endswith("yaml") else text for name, text in texts.items()}


def instruction(dockerfile: str, name: str) -> str:
    """The last instruction of this name."""
    lines = dockerfile.replace("\\\n", " ").splitlines()
    return [line.partition(" ")[2].strip() for line in lines if line.startswith(f"{name} ")][-1]


def options_of(words: list[str]) -> dict[str, Any]:
    """The options of `vitcifar app`, parsed as the command does."""
    assert words[:2] == ["vitcifar", "app"]
    return cli.main.commands["app"].make_context("app", words[2:]).params


def test_the_image_starts_the_server_as_an_ordinary_user_and_checks_the_port_that_it_serves(tmp_path: Path):
    dockerfile = written(tmp_path / "out")["Dockerfile"]
    options = options_of(json.loads(instruction(dockerfile, "CMD")))
    assert (options["version"], options["model_name"], options["host"]) == ("champion", "My model", "0.0.0.0")
    assert options["page"] == "off"
    assert instruction(dockerfile, "EXPOSE") == str(options["port"])
    check = json.loads(instruction(dockerfile, "HEALTHCHECK").partition(" CMD ")[2])
    assert f"'127.0.0.1', {options['port']}," in check[-1]
    assert f"'{READY}'" in check[-1]
    assert instruction(dockerfile, "USER") == "10001"
    assert instruction(dockerfile, "STOPSIGNAL") == "SIGTERM"
    assert instruction(dockerfile, "COPY") == "requirements.txt *.whl ./"
    find_links, *pins, wheel = (tmp_path / "out/requirements.txt").read_text().splitlines()
    assert (find_links, pins) == ("--find-links .", lock([*SERVING, *(["openvino"] if is_installed() else [])]))
    assert (tmp_path / f"out/{wheel.replace('==', '-')}-py3-none-any.whl").is_file()


def test_kserve_probes_the_server_and_speaks_its_protocol(tmp_path: Path):
    service = written(tmp_path / "out")["inference_service.yaml"]
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert service["metadata"]["name"] == "my-model"
    (container,) = service["spec"]["predictor"]["containers"]
    port = options_of(container["args"])["port"]
    assert container["ports"] == [{"containerPort": port, "protocol": "TCP"}]
    assert container["readinessProbe"]["httpGet"] == {"path": READY, "port": port}
    assert container["livenessProbe"]["httpGet"] == {"path": LIVE, "port": port}
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env == {"PROTOCOL": "v2", "MLFLOW_TRACKING_URI": "http://models.example:5000"}


def test_ray_serve_gets_arguments_that_the_application_knows(tmp_path: Path):
    (application,) = written(tmp_path / "out")["ray_serve.yaml"]["applications"]
    assert application["import_path"] == "vitcifar.serving.ray_app:app"
    assert application["args"].keys() <= DEFAULTS.keys()
    assert application["deployments"][0]["num_replicas"] == 2


@pytest.mark.parametrize("uri", ["sqlite:///{folder}/mlflow.db", "http://127.0.0.1:5000", "http://models.example:5000"])
def test_compose_starts_an_mlflow_server_where_the_registry_is_on_no_other_machine(tmp_path: Path, uri: str):
    compose = written(tmp_path / "out", uri.format(folder=tmp_path))["compose.yaml"]
    services = compose["services"]
    server = services["vitcifar"]
    assert server["ports"] == ["127.0.0.1:7860:7860"]
    if "example" in uri:
        assert list(services) == ["vitcifar"]
        assert server["environment"]["MLFLOW_TRACKING_URI"] == uri
        return
    assert server["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    (volume,) = services["mlflow"]["volumes"]
    command = services["mlflow"]["command"]
    store = Path(command[command.index("--backend-store-uri") + 1].removeprefix("sqlite:///"))
    assert store == Path(volume["target"]) / "mlflow.db"
    if "sqlite" in uri:  # MLflow recorded paths: both containers find the files there
        paths = {"type": "bind", "source": str(tmp_path), "target": str(tmp_path)}
        assert volume == paths
        assert {**paths, "read_only": True} in server["volumes"]
    named = {one["source"] for service in services.values() for one in service["volumes"] if one["type"] == "volume"}
    assert compose["volumes"].keys() == named


def test_the_files_hold_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    written(tmp_path / "out", page=True)
    written(tmp_path / "other", "postgresql://ada:s3cret@db.example/mlflow")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()] == []


def test_a_folder_with_files_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty: name a new one with --out"):
        written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two toy versions, `champion` pointing at the first, and what `vitcifar container` wrote."""
    uri = settle(tmp_path, monkeypatch)
    for name in ("one", "two"):
        add_version(tmp_path, name)
    mlflow.MlflowClient().set_registered_model_alias("toy", "champion", "1")
    write_container(tmp_path / "out", version="champion", model_name="toy", tracking_uri=uri, page=False)
    (tmp_path / "home").mkdir()
    return tmp_path


def free_port() -> int:
    with bind("127.0.0.1", 0) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], check: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Run a server of the containers until SIGTERM, from when its health check passes."""
    process = subprocess.Popen(command, cwd=folder, env=environment)

    def healthy() -> bool:
        assert process.poll() is None, f"{command} ended"
        return subprocess.run(check, env=environment, capture_output=True).returncode == 0

    try:
        wait_until(healthy, f"{command} is not healthy", seconds=120)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(12) == 0


@pytest.mark.skipif("VITCIFAR_INSTALL" not in os.environ, reason="VITCIFAR_INSTALL is not set: it installs 440 MB")
@pytest.mark.timeout(900)
def test_the_steps_of_the_dockerfile_in_an_empty_environment_serve_and_follow_the_alias(project: Path):
    dockerfile = (project / "out/Dockerfile").read_text()
    subprocess.run([sys.executable, "-m", "venv", project / "venv"], check=True)
    bare = {"PATH": f"{project}/venv/bin:/usr/bin:/bin", "HOME": f"{project}/home", "VITCIFAR_CACHE": f"{project}/c"}
    index = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP"))}
    (pip,) = re.findall("^RUN (pip install .*)$", dockerfile, re.MULTILINE)
    subprocess.run([*shlex.split(pip), "-q"], cwd=project / "out", env=bare | index, check=True)
    frozen = subprocess.run(["pip", "freeze"], env=bare, capture_output=True, text=True, check=True).stdout
    assert not re.search("^(torch|torchvision|tensorboard|gradio|nvidia|mlflow==)", frozen, re.MULTILINE)

    service = yaml.safe_load((project / "out/compose.yaml").read_text())["services"]["mlflow"]
    mlflow_port, port = str(free_port()), str(free_port())
    words = [word.replace("5000", mlflow_port).replace("0.0.0.0", "127.0.0.1") for word in service["command"]]
    check = [word.replace("5000", mlflow_port) for word in service["healthcheck"]["test"][1:]]
    with running(words, check, environment(project, **service["environment"]), project / "home"):
        bare["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{mlflow_port}"
        words = [*json.loads(instruction(dockerfile, "CMD")), "--port", port]
        check = json.loads(instruction(dockerfile, "HEALTHCHECK").partition(" CMD ")[2].replace("7860", port))
        started = time.monotonic()
        with running(words, check, bare, project / "home"), httpx.Client(trust_env=False, timeout=30) as client:
            size = sum(path.lstat().st_size for path in (project / "venv").rglob("*") if path.is_file()) / 2**20
            print(f"{size:.0f} MiB installed, ready after {time.monotonic() - started:.1f} s")

            def version() -> int:
                answer = client.post(f"http://127.0.0.1:{port}/v1/predict", files={"image": make_image("blue")})
                (row,) = answer.json()["predictions"]
                assert row["label"] == "blue"
                return row["version"]

            assert version() == 1
            mlflow.MlflowClient().set_registered_model_alias("toy", "champion", "2")
            wait_until(lambda: version() == 2, "the container does not follow the alias")
        words = ["vitcifar", "versions", "--model-name", "toy"]
        assert "champion" in subprocess.run(words, env=bare, capture_output=True, text=True, check=True).stdout
    train = subprocess.run(["vitcifar", "train"], cwd=project / "home", env=bare, capture_output=True, text=True)
    assert re.fullmatch(r"Error: This installation of vitcifar serves only, without \w+: .*\n", train.stderr)


def test_a_required_key_is_part_of_the_image(tmp_path: Path):
    """Where nobody who can write to the registry changes it."""
    key = "ed25519:" + "A" * 43 + "="
    values = {"version": "champion", "model_name": "toy", "tracking_uri": "http://mlflow.example", "page": False}
    write_container(tmp_path / "out", **values, require_signature=key)
    assert f"\nENV VITCIFAR_REQUIRE_SIGNATURE={key}\n" in (tmp_path / "out" / "Dockerfile").read_text()
    (application,) = yaml.safe_load((tmp_path / "out" / "ray_serve.yaml").read_text())["applications"]
    assert application["runtime_env"] == {"env_vars": {"VITCIFAR_REQUIRE_SIGNATURE": key}}
    write_container(tmp_path / "without", **values)
    for name in ("Dockerfile", "ray_serve.yaml"):
        assert "SIGNATURE" not in (tmp_path / "without" / name).read_text()
