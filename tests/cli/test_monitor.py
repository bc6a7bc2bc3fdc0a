"""`vitcifar monitor`: what it prints of a running server, and of one that cannot be asked."""

import json
from typing import Any

import pytest
from click.testing import CliRunner
from support.serving import FakeRegistry
from support.watched import WatchedRegistry, colours, files

from vitcifar import cli
from vitcifar.serving.app import launch


def run(*words: str, fails: bool = False) -> str:
    result = CliRunner().invoke(cli.main, ["monitor", *words])
    assert (result.exit_code != 0) is fails, result.output
    return result.output


def test_it_prints_what_a_server_knows(tmp_path):
    import httpx

    registry: Any = WatchedRegistry(tmp_path)
    running = launch(registry, port=0, page=False, shadow="challenger", passwords={"ann": "secret"})
    try:
        assert "wants a login: write NAME:PASSWORD@ before the host" in run("--url", running.url, fails=True)
        url = running.url.replace("http://", "http://ann:secret@")
        assert "nothing was classified" in run("--url", url)
        httpx.post(f"{running.url}/v1/predict", files=files(colours(60)), auth=("ann", "secret"), trust_env=False)
        text = run("--url", url)
        row = next(line.split() for line in text.splitlines() if line.split()[:2] == ["1", "60"])
        assert row[-2] == "no" and float(row[-1]) > 0.05 and 0 < float(row[2]) <= 1
        assert "No version is challenger besides the one that serves" in text
        found = json.loads(run("--url", url, "--format", "json"))
        assert found["versions"][0]["num_images"] == 60 and found["shadow"]["version"] is None
    finally:
        running.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://ann:secret@127.0.0.1:9"])
def test_a_server_that_cannot_be_asked_is_one_sentence_without_the_password(url):
    output = run("--url", url, fails=True)
    assert "cannot be asked" in output and "start vitcifar app" in output and "secret" not in output


def test_another_server_is_said_to_be_one(tmp_path, monkeypatch):
    registry: Any = FakeRegistry(tmp_path)
    running = launch(registry, port=0, page=False)
    try:
        assert "has no monitor" in run("--url", f"{running.url}/elsewhere", fails=True)
    finally:
        running.close()
