"""Host names, the size of requests and the security headers, without a page behind them."""

import asyncio
import json
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from vitcifar.serving.middleware import MAX_REQUEST_BYTES, HostCheck, RequestLimits, SecurityHeaders


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
