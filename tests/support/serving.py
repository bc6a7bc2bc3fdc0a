"""A registry that fails on demand, requests to the page, and a browser."""

import http.client
import json
import secrets
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.toys import make_onnx

from vitcifar.errors import RegistryError, ReleaseError
from vitcifar.inference.session import OnnxClassifier, Prediction
from vitcifar.registry.registry import Version, select
from vitcifar.release.manifest import MANIFEST_FILE, Manifest
from vitcifar.serving.app import Page
from vitcifar.serving.loaded_model import LoadedModel

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
in_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM} on this machine")


class FakeRegistry:
    """Versions of a toy model; those in `broken` raise on pull, and `unreachable` raises on everything."""

    model_name = "colours"

    def __init__(self, folder: Path, numbers: tuple[int, ...] = (1, 2)) -> None:
        self.folder = folder
        self.numbers = list(numbers)
        self.aliases: dict[str, int] = {"champion": 1}
        self.broken: set[int] = set()
        self.unreachable = False
        self.sentence = ""  # of every error, instead of the usual one
        self.pulled: list[int] = []
        self.tags: dict[str, str] = {}  # of the registered model

    def list(self) -> list[Version]:
        if self.unreachable:
            raise RegistryError(self.sentence or "The registry is unreachable.")
        return [
            Version(
                model_name=self.model_name,
                number=number,
                aliases=tuple(sorted(alias for alias, target in self.aliases.items() if target == number)),
                status="READY",
                created="2026-01-01T00:00:00Z",
                run_id="",
                source="",
                tags={"test_accuracy": "0.999"},  # edited: release.json says 0.875
            )
            for number in sorted(self.numbers, reverse=True)
        ]

    def read(self) -> tuple[Sequence[Version], dict[str, str]]:
        return self.list(), self.tags

    def resolve(self, spec: str | int) -> int:
        version = select(self.list(), spec)
        if version is None:
            raise RegistryError(f"colours has no version {spec!r}.")
        return version.number

    def pull(self, spec: str | int, **options: Any) -> Manifest:
        number = self.resolve(spec)
        self.pulled.append(number)
        if number in self.broken:
            raise ReleaseError(self.sentence or f"Version {number} was changed.")
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        make_onnx(folder / "model.onnx", release_id=f"toy{number}")
        manifest = make_manifest(release_id=f"toy{number}", folder=folder, version=number)
        (folder / MANIFEST_FILE).write_text(manifest.to_json())
        return manifest


def make_manifest(**fields: Any) -> Manifest:
    """The manifest of a toy release that separates red, green and blue images."""
    toy: dict[str, Any] = {
        "release_id": "toy",
        "model_name": "colours",
        "class_names": ("red", "green", "blue"),
        "image_size": 32,
        "temperature": 1.0,
        "fingerprint": "",
        "run_id": "",
        "checks": {"test": {"accuracy": 0.875}},
    }
    return Manifest(**{**toy, **fields})


def make_model(onnx_file: Path, **fields: Any) -> LoadedModel:
    """A toy release as version 7 of `colours`, without a registry."""
    return LoadedModel(
        model_name="colours", version=7, manifest=make_manifest(**fields), classifier=OnnxClassifier(onnx_file)
    )


def expected_prediction(registry: Any, version: int, image: Path) -> Prediction:
    return OnnxClassifier(registry.pull(version).onnx_path).predict(image)


def health(page: Page) -> dict[str, Any]:
    with urllib.request.urlopen(f"{page.url}/health", timeout=10) as response:
        return json.load(response)


def request_status(page: Page, path: str, headers: dict[str, str], body: Any = None) -> int:
    """The status of one request; 413 also when the server stops reading a body that is too large."""
    connection = http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=20)
    try:
        connection.request("POST" if body else "GET", path, body, headers)
        return connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        return 413
    finally:
        connection.close()


def send_event(page: Page, function: str, data: list[Any], event_data: Any) -> str:
    """What the page's private function of this name answers to a forged event, through the queue."""
    functions = page._gradio_app.blocks.fns.items()
    (number,) = (number for number, block in functions if getattr(block.fn, "__name__", "") == function)
    body = {"data": data, "event_data": event_data, "fn_index": number, "session_hash": secrets.token_hex(4)}
    headers = {"Content-Type": "application/json"}
    for path, content in (
        ("queue/join", json.dumps(body).encode()),
        (f"queue/data?session_hash={body['session_hash']}", None),
    ):
        request = urllib.request.Request(f"{page.url}/gradio_api/{path}", content, headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            answer = response.read().decode()
    return next(line for line in answer.splitlines() if "process_completed" in line)


def wait_until(condition: Callable[[], bool], failure: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, failure
        time.sleep(0.05)
