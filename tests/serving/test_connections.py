"""Connections that send nothing, or slowly, and more of them than the process may have files open."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from support.project import ROOT
from support.serving import FakeRegistry, wait_until
from support.toys import make_image

from vitcifar.serving import connections, middleware
from vitcifar.serving.app import Page, launch

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"


@pytest.fixture
def quick(tmp_path, monkeypatch) -> Iterator[Page]:
    """A server that waits a second for headers, two for the rest."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(middleware, "MAX_SEND_SECONDS", 2.0)
    running = launch(FakeRegistry(tmp_path), port=0, page=False)
    yield running
    running.close()


@pytest.fixture
def connect(quick) -> Iterator[Callable[[bytes], socket.socket]]:
    """`connect(data)` opens a connection and sends data."""
    with contextlib.ExitStack() as stack:

        def open_one(data: bytes = b"") -> socket.socket:
            address = urlsplit(quick.url)
            connection = stack.enter_context(socket.create_connection((address.hostname, address.port), 10))
            connection.sendall(data)
            return connection

        yield open_one


def classify(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/predict", files={"image": make_image()}, trust_env=False, timeout=20)


def closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(10_000) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("start", [b"", b"POST /v1", HEAD.partition(b"Content-Type")[0]])
def test_a_connection_whose_request_does_not_come_is_closed(quick, connect, start):
    connection = connect(start)
    began = time.monotonic()
    assert connection.recv(100) == b"" and 0.9 < time.monotonic() - began < 5


def test_a_header_that_comes_byte_by_byte_does_not_keep_a_connection_open(quick, connect):
    connection, ended = connect(), False
    for byte in HEAD[:100]:
        with contextlib.suppress(ConnectionError):
            connection.sendall(bytes([byte]))
        time.sleep(0.05)
        if ended := closed(connection):
            break
    assert ended


def test_headers_without_end_close_the_connection_before_they_fill_the_memory(quick, connect):
    connection, sent = connect(HEAD[:60]), 0
    with contextlib.suppress(ConnectionError):
        while sent < 100 * connections.MAX_HEADER_BYTES and not closed(connection):
            connection.setblocking(True)
            sent += connection.send(b"X: " + b"x" * 4000 + b"\r\n")
    assert connections.MAX_HEADER_BYTES < sent < 100 * connections.MAX_HEADER_BYTES


def test_a_body_that_comes_byte_by_byte_is_answered_with_408_and_closed(quick, connect):
    connection, answer = connect(HEAD), b""
    connection.settimeout(0.05)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            connection.sendall(b"x")
            if not (data := connection.recv(10_000)):
                break
            answer += data
        except TimeoutError:
            pass
        except ConnectionError:
            break
    assert answer.startswith(b"HTTP/1.1 408 ") and b"was not sent within 2 seconds" in answer
    assert time.monotonic() < end, "it was not closed"


def test_idle_and_slow_connections_do_not_stop_others(quick, connect):
    silent = [connect() for _ in range(200)]
    slow = [connect(HEAD) for _ in range(50)]
    began = time.monotonic()
    assert classify(quick.url).status_code == 200
    assert time.monotonic() - began < 2
    wait_until(lambda: all(map(closed, silent)), "the silent ones are still open")
    wait_until(lambda: all(map(closed, slow)), "the slow ones are still open")


def test_a_connection_stays_open_between_requests_and_may_be_slower_than_its_headers(quick):
    with httpx.Client(base_url=quick.url, trust_env=False, timeout=20) as client:
        for _ in range(3):
            assert client.post("/v1/predict", files={"image": make_image()}).status_code == 200
            time.sleep(1.3)  # more than HEADER_SECONDS


def test_past_the_limit_the_connection_that_waits_longest_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr("vitcifar.serving.app.max_connections", lambda: 3)
    running = launch(FakeRegistry(tmp_path), port=0, page=False)
    address = urlsplit(running.url)
    try:
        with contextlib.ExitStack() as stack:
            opened = []
            for data in (HEAD, b"", b"", b""):
                connection = socket.create_connection((address.hostname, address.port), 10)
                opened.append(stack.enter_context(connection))
                connection.sendall(data)
                time.sleep(0.1)
            wait_until(lambda: closed(opened[1]), "the connection that waits longest is still open")
            assert [closed(connection) for connection in opened] == [False, True, False, False]
            assert classify(running.url).status_code == 200
    finally:
        running.close()


def test_more_connections_than_files_leave_the_server_answering_and_its_log_empty(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from pathlib import Path\nfrom support.serving import FakeRegistry\nfrom vitcifar.serving.app import launch\n"
        "page = launch(FakeRegistry(Path('.')), port=0, page=False)\nprint(page.url, flush=True)\npage.wait()\n"
    )
    command = ["bash", "-c", 'ulimit -n 1024 && exec "$@"', "-", sys.executable, "-c", code]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        contextlib.ExitStack() as stack,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            address = urlsplit(url)
            for _ in range(1100):
                stack.enter_context(socket.create_connection((address.hostname, address.port), 10))
            for _ in range(5):
                began = time.monotonic()
                assert classify(url).status_code == 200
                assert time.monotonic() - began < 5
        finally:
            process.terminate()
        assert process.wait(20) == 0
    assert (tmp_path / "log").read_text() == ""
