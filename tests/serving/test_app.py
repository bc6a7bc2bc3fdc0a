"""Ports, the health endpoint, the life of the server, and its middleware without a page behind it."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from support.project import ROOT, loaded_modules
from support.serving import health, request_status

from vitcifar.errors import ServingError
from vitcifar.serving.app import MAX_REQUEST_BYTES, HostCheck, RequestLimits, SecurityHeaders, free_port, launch


def test_a_port_in_use_is_one_sentence_with_the_way_out(colours):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=rf"Port {port} on 127\.0\.0\.1 is in use: type --port {port + 1}"):
            launch(colours, port=port)
    assert colours.pulled == [], "no version is loaded for a page that cannot start"


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_foreign_address_is_one_sentence(host):
    with pytest.raises(ServingError, match="is not an address of this machine"):
        free_port(host, 7860)


def test_port_0_takes_a_free_one():
    assert free_port("127.0.0.1", 0) > 1023


def test_health_names_the_version_that_serves(page):
    response = health(page)
    assert (response["status"], response["model"], response["version"]) == ("ok", "toy", 1)
    assert (response["spec"], response["aliases"], response["problem"]) == ("champion", ["champion"], "")


def test_every_response_has_the_security_headers(page):
    with urllib.request.urlopen(page.url, timeout=10) as response:
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["x-frame-options"] == "DENY" and response.headers["x-content-type-options"] == "nosniff"


def test_a_foreign_host_header_is_rejected(page):
    assert request_status(page, "/", {"Host": "evil.example"}) == 400
    assert request_status(page, "/health", {"Host": "localhost:1"}) == 200


@pytest.mark.parametrize("path", ["/gradio_api/run/predict", "/gradio_api/upload"])
def test_a_request_that_is_too_large_is_rejected(page, path):
    assert request_status(page, path, {"Content-Length": str(MAX_REQUEST_BYTES + 1)}, b"{") == 413
    chunks = (b"x" * 2**20 for _ in range(MAX_REQUEST_BYTES // 2**20 + 2))
    assert request_status(page, path, {"Transfer-Encoding": "chunked"}, chunks) == 413


def test_a_closed_page_stops_responding_and_frees_its_port(colours):
    running = launch(colours, port=0)
    assert health(running)["model"] == "colours"
    running.close()
    with pytest.raises(OSError):
        health(running)
    free_port("127.0.0.1", urlsplit(running.url).port or 0)


def test_a_proxy_in_the_environment_does_not_stop_the_page(colours, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    running = launch(colours, port=0)
    assert request_status(running, "/health", {}) == 200
    running.close()


def test_sigterm_stops_the_page_and_deletes_the_uploads(published, tmp_path):
    code = (
        "import threading\nfrom vitcifar import tracking\nfrom vitcifar.registry.registry import Registry\n"
        "from vitcifar.serving.app import launch\n"
        f"tracking.connect({published.uri!r})\npage = launch(Registry('toy'), port=0)\n"
        "threading.Timer(0.5, lambda: print(page.url, flush=True)).start()\npage.wait()\n"
    )
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
        "VITCIFAR_CACHE": str(published.folder / "cache"),
    }
    with subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert list(tmp_path.glob("vitcifar-page-*"))
        process.terminate()
        assert process.wait(30) == 0
    assert not list(tmp_path.glob("vitcifar-page-*"))


def test_the_page_does_not_load_torch(registry, tmp_path):
    loaded = loaded_modules(
        "from vitcifar.serving.app import launch\n"
        "from vitcifar.registry.registry import Registry\n"
        "launch(Registry('toy'), port=0).close()",
        tmp_path,
    )
    assert not {"torch", "torchvision"} & loaded


async def read_body(scope: Any, receive: Any, send: Any) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


async def never_called(scope: Any, receive: Any, send: Any) -> None:
    pytest.fail("the request reached the app")


def respond(app: Any, headers: dict[str, str], chunks: tuple[bytes, ...] = ()) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the body of the response of an ASGI app."""
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    parts.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw}
    asyncio.run(app(scope, receive, send))
    start, *bodies = sent
    names = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], names, b"".join(message["body"] for message in bodies)


@pytest.mark.parametrize(
    ("host", "header", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True),
        ("127.0.0.1", "localhost:7860", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "[::1]:7860", True),
        ("127.0.0.1", "[::1]", True),
        ("127.0.0.1", "my.name:7860", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example:7860", False),
        ("127.0.0.1", "192.0.2.1:7860", False),
        ("127.0.0.1", "", False),
        ("0.0.0.0", "192.0.2.1:7860", True),
        ("0.0.0.0", "[2001:db8::1]:7860", True),
        ("::", "192.0.2.1", True),
        ("0.0.0.0", "evil.example:7860", False),
        ("", "", False),
    ],
)
def test_only_host_names_of_this_server_are_allowed(host, header, allowed):
    assert HostCheck(read_body, host, ("My.Name",)).allows(header) is allowed


def test_a_foreign_host_gets_one_sentence_as_json_with_the_security_headers():
    status, headers, body = respond(SecurityHeaders(HostCheck(never_called, "127.0.0.1")), {"Host": "evil.example"})
    assert status == 400 and headers["x-frame-options"] == "DENY"
    assert "--allowed-hosts" in json.loads(body)["detail"]
    assert respond(HostCheck(read_body, "127.0.0.1"), {"Host": "localhost:1"})[0] == 200


def test_a_request_that_declares_too_many_bytes_is_rejected_unread():
    status, _, body = respond(RequestLimits(never_called), {"Content-Length": str(MAX_REQUEST_BYTES + 1)})
    assert status == 413 and "larger than 43 MiB" in json.loads(body)["detail"]


def test_a_request_that_sends_too_many_bytes_is_rejected_while_it_is_read():
    chunk = b"x" * 2**20
    assert respond(RequestLimits(read_body), {}, (chunk,) * (MAX_REQUEST_BYTES // 2**20))[2] == b"%d" % (43 * 2**20)
    with pytest.raises(HTTPException) as caught:  # Starlette and FastAPI make the response of it
        respond(RequestLimits(read_body), {}, (chunk,) * (MAX_REQUEST_BYTES // 2**20 + 1))
    assert caught.value.status_code == 413
