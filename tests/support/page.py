"""Requests to Gradio as forged clients send them, and what people do on the page."""

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.project import ROOT

from vitcifar.serving.app import Page

SCREENSHOTS = ROOT / "screenshots"
FILE_INPUT = "#image input[type=file]"


def upload_of(**fields: Any) -> Any:
    """What Gradio passes for an upload."""
    return SimpleNamespace(**{"path": None, "url": None, "orig_name": None, **fields})


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def post(page: Page, path: str, body: dict[str, Any]) -> str:
    """The body of the response, of an error too."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{page.url}/gradio_api/{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def get(page: Page, path: str) -> str:
    with urllib.request.urlopen(f"{page.url}/gradio_api/{path}", timeout=20) as response:
        return response.read().decode()


def call(page: Page, data: list[Any]) -> str:
    return get(page, f"call/predict/{json.loads(post(page, 'call/predict', {'data': data}))['event_id']}")


def upload(tab: Any, path: Path) -> None:
    tab.set_input_files(FILE_INPUT, str(path))


def screenshot(tab: Any, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    tab.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
