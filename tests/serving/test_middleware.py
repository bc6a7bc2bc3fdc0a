"""Host names, the size of requests and the security headers, without a page behind them."""

import asyncio
import json
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from vitcifar.data.image import MAX_BYTES
from vitcifar.errors import ServingError
from vitcifar.serving import middleware
from vitcifar.serving.app import launch
from vitcifar.serving.middleware import (
    MAX_REQUEST_BYTES,
    HostCheck,
    OriginCheck,
    RequestLimits,
    SecurityHeaders,
    largest_image,
)


async def read_body(scope: Any, receive: Any, send: Any) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


async def never_called(scope: Any, receive: Any, send: Any) -> None:
    pytest.fail("the request reached the app")


def respond(
    app: Any, headers: dict[str, str], chunks: tuple[bytes, ...] = (), method: str = "POST"
) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the body of the response of an ASGI app."""
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    parts.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/", "query_string": b"", "headers": raw}
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


@pytest.mark.parametrize(
    ("allowed", "header", "matches"),
    [
        ("photos.example:8443", "photos.example:8443", True),
        ("photos.example:8443", "photos.example", False),
        ("photos.example:443", "photos.example", True),
        ("photos.example:*", "photos.example:8443", True),
        ("*.photos.example", "eu.photos.example:8443", True),
        ("*.photos.example", "photos.example", False),
        ("*.photos.example:8443", "eu.photos.example:8444", False),
        ("*", "any.example", True),
        ("*", "192.0.2.1:1", True),
        ("*", "", False),
        ("[2001:db8::1]:8443", "[2001:db8::1]:8443", True),
        ("2001:db8::1", "[2001:db8::1]:7860", True),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("photos.example", "photosxexample", False),
    ],
)
def test_allowed_hosts_may_have_ports_and_stars(allowed, header, matches):
    assert HostCheck(read_body, "127.0.0.1", (allowed,)).allows(header) is matches


@pytest.mark.parametrize("host", ["https://a", "a.example/path", "", "a b", "a:port", "a:", "http://*:80", "a?b", "[x"])
def test_a_host_that_nothing_can_match_is_refused_at_the_start(colours, host):
    with pytest.raises(ServingError, match="is no host name: type names such as"):
        launch(colours, port=0, allowed_hosts=("a.example", host))
    assert colours.pulled == []


def test_a_foreign_host_gets_one_sentence_as_json_with_the_security_headers():
    status, headers, body = respond(SecurityHeaders(HostCheck(never_called, "127.0.0.1")), {"Host": "evil.example"})
    assert status == 400 and headers["x-frame-options"] == "DENY"
    assert "--allowed-hosts" in json.loads(body)["detail"]
    assert respond(HostCheck(read_body, "127.0.0.1"), {"Host": "localhost:1"})[0] == 200


@pytest.mark.parametrize(
    ("method", "headers", "allowed"),
    [
        ("POST", {}, True),  # a program
        ("POST", {"Origin": "http://localhost:7860"}, True),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, True),  # a link
        ("POST", {"Sec-Fetch-Site": "same-origin", "Origin": "http://behind.a.proxy"}, True),
        ("POST", {"X-Forwarded-Host": "behind.a.proxy", "Origin": "http://behind.a.proxy"}, True),
        ("POST", {"X-Forwarded-Host": "behind.a.proxy", "Origin": "http://evil.example"}, False),
        ("POST", {"Sec-Fetch-Site": "cross-site"}, False),
        ("GET", {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"}, False),
        *(
            (method, {"Origin": origin}, False)
            for method in ("GET", "POST", "OPTIONS", "DELETE")
            for origin in ("http://evil.example", "null", "", "http://localhost:3000", "http://[", "localhost:7860")
        ),
    ],
)
def test_web_pages_of_other_servers_are_refused(method, headers, allowed):
    status, _, body = respond(OriginCheck(read_body), {"Host": "localhost:7860", **headers}, method=method)
    assert status == (200 if allowed else 403)
    assert allowed or json.loads(body)["detail"].startswith("This comes from a web page of another server")


def test_a_request_that_declares_too_many_bytes_is_rejected_unread():
    status, _, body = respond(RequestLimits(never_called), {"Content-Length": str(MAX_REQUEST_BYTES + 1)})
    assert status == 413 and "larger than 16 MiB: send a smaller image or fewer" in json.loads(body)["detail"]


def test_a_request_that_sends_too_many_bytes_is_rejected_while_it_is_read():
    chunk = b"x" * 2**20
    assert respond(RequestLimits(read_body), {}, (chunk,) * (MAX_REQUEST_BYTES // 2**20))[2] == b"%d" % (16 * 2**20)
    with pytest.raises(HTTPException) as caught:  # Starlette and FastAPI make the response of it
        respond(RequestLimits(read_body), {}, (chunk,) * (MAX_REQUEST_BYTES // 2**20 + 1))
    assert caught.value.status_code == 413


@pytest.mark.parametrize("mebibytes", [1, 2, 16, 43, 1024])
def test_the_largest_image_of_the_page_fits_into_a_request_with_what_is_around_it(mebibytes):
    fits = largest_image(mebibytes * 2**20)
    assert 0 < fits <= MAX_BYTES and fits * 4 / 3 + 2**15 < mebibytes * 2**20
    assert mebibytes < 43 or fits == MAX_BYTES


def test_a_request_that_is_sent_too_slowly_is_ended(monkeypatch):
    monkeypatch.setattr(middleware, "MAX_SEND_SECONDS", 0.05)

    async def trickle() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    with pytest.raises(HTTPException, match="was not sent within") as caught:
        asyncio.run(RequestLimits(read_body)(scope, trickle, None))
    assert caught.value.status_code == 408


def test_a_request_that_has_arrived_may_take_its_time(monkeypatch):
    monkeypatch.setattr(middleware, "MAX_SEND_SECONDS", 0.01)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(0.05)
        assert (await receive())["type"] == "http.disconnect"

    messages = [{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(RequestLimits(slow)(scope, receive, None))
