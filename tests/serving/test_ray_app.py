"""The server behind Ray Serve: `serve run` with the config of `vitcifar container`, two replicas, real requests."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
import yaml
from support.project import ROOT
from support.releases import add_version
from support.serving import wait_until
from support.toys import make_image, settle

from vitcifar.errors import ConfigError
from vitcifar.serving.app import bind
from vitcifar.serving.container import write_container
from vitcifar.serving.ray_app import app

SERVE = Path(sys.executable).with_name("serve")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of two replicas that follow `champion`, at first version 1."""
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install -e '.[ray]'")
    folder = tmp_path_factory.mktemp("ray")
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    with pytest.MonkeyPatch.context() as patch:
        uri = settle(folder, patch)
        for name in ("one", "two"):
            add_version(folder, name)
        mlflow.MlflowClient().set_registered_model_alias("toy", "champion", "1")
        write_container(folder / "out", version="champion", model_name="toy", tracking_uri=uri, page=False)
        config = yaml.safe_load((folder / "out/ray_serve.yaml").read_text())
        config["http_options"]["port"] = port
        config["applications"][0]["args"]["tracking_uri"] = uri
        (folder / "serve.yaml").write_text(yaml.safe_dump(config))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        log = (folder / "serve.log").open("w+")
        ray = subprocess.Popen([SERVE, "run", "serve.yaml"], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            try:
                wait_until(lambda: ray.poll() is not None or is_ready(client), "Ray Serve did not start", seconds=240)
                assert ray.poll() is None, Path(log.name).read_text()
                yield client
            finally:
                ray.terminate()
                ray.wait(60)


@pytest.fixture(scope="module", autouse=True)
def temporary_files() -> None:
    """Those of the machine: Ray puts sockets there, whose paths have 107 characters at most."""


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def predict(client: httpx.Client) -> dict[str, Any]:
    answer = client.post("/v1/predict", content=make_image("green"), headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]


def replica_states() -> dict[str, int]:
    """What `serve status` says; nothing while Ray's dashboard, which it asks, has not started."""
    done = subprocess.run([SERVE, "status"], env=os.environ, capture_output=True, text=True)
    if done.returncode:
        return {}
    deployment = yaml.safe_load(re.sub(r"\A.*?(?=^proxies)", "", done.stdout, flags=re.DOTALL | re.MULTILINE))
    return dict(deployment["applications"]["toy"]["deployments"]["Server"]["replica_states"])


def test_two_replicas_answer_every_route_of_the_server_and_follow_the_alias(client: httpx.Client):
    row = predict(client)
    assert (row["label"], row["version"], row["alias"]) == ("green", 1, "champion")
    assert client.get("/v2/models/toy/ready").json()["ready"] is True
    assert client.post("/v1/predict", content=b"no image", headers={"content-type": "image/png"}).status_code == 422
    assert client.get("/docs").status_code == client.get("/metrics").status_code == 200
    assert client.get("/health/live", headers={"host": "elsewhere.example"}).status_code == 400

    wait_until(lambda: replica_states() == {"RUNNING": 2}, "there are not two replicas", seconds=60)
    mlflow.MlflowClient().set_registered_model_alias("toy", "champion", "2")
    wait_until(lambda: {predict(client)["version"] for _ in range(12)} == {2}, "a replica does not follow the alias")


def test_an_unknown_argument_is_named():
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install -e '.[ray]'")
    with pytest.raises(ConfigError, match="no argument verison: there are version, model_name, tracking_uri"):
        app({"verison": "3"})
