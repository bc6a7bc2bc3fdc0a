"""Requests that no client would send, from a seed: over every route, valid ones changed in some places."""

import base64
import contextlib
import http.client
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from support.toys import make_image

from vitcifar.serving.app import Page

IMAGE = make_image()
TEXT = base64.b64encode(IMAGE).decode()
TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
PIXELS = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0] * 12}
UPLOAD = {"path": None, "url": f"data:image/png;base64,{TEXT}", "orig_name": "a.png"}
PART = {"serial": "1", "start": 0, "versions": [], "files": [{"name": "a.png", "url": UPLOAD["url"]}]}
VALID = (  # bodies that some route answers
    {"images": [TEXT]},
    {"inputs": [TENSOR], "outputs": [{"name": "label"}], "id": "1"},
    {"inputs": [PIXELS]},
    {"inputs": [TEXT]},
    {"instances": [[[0, 1, 2]]]},
    {"dataframe_split": {"columns": ["image"], "data": [[TEXT]]}},
    {"dataframe_records": [{"image": TEXT}]},
    {"inputs": {"image": [TEXT]}, "params": {"a": 1}},
    {"data": [UPLOAD, "champion"], "session_hash": "fuzz"},
    {"data": [UPLOAD, "champion"], "fn_index": 1, "session_hash": "fuzz", "trigger_id": 1, "event_data": PART},
    {"component_id": 1, "fn_name": "preview", "data": UPLOAD, "session_hash": "fuzz"},
    {"session_hash": "fuzz", "fn_index": 0, "event_id": "fuzz"},
    {"username": "ann", "password": "right"},
)
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 10**30, 1e308, float("nan"), 0.5, "", "\0", "a", "é\ud800", "\x1b[2J\n", "x" * 5000),
    *([], {}, [[]], {"": {}}, [[[[1]]]], {"__type__": "update"}, "../../../etc/passwd", "http://192.0.2.1/a.png"),
    *({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "champion", "1", "@champion", "v2", "' OR 1=1"),
)
TYPES = (
    *("application/json", "image/png", "text/csv", "application/x-www-form-urlencoded", "application/octet-stream"),
    *("multipart/form-data; boundary=b", "multipart/form-data", "multipart/form-data; boundary=", "text/plain"),
    *("application/json; charset=utf-16", "application/json; charset=none", "image/png; \xff", "x", "", ";", "a/b/c"),
)
HEADERS = {
    "Origin": ("http://evil.example", "null", "", "http://[", "://", "http://localhost:3000", "\xff"),
    "Referer": ("http://evil.example/a", "http://[", "\xff"),
    "Authorization": ("Basic", "Basic !", "Basic YTpi", "Bearer x", "\xff", "Basic /w=="),
    "Cookie": ("access-token=x; a", "access-token-unsecure=\xff", "=;=;", "a" * 9000),
    "Range": ("bytes=0-1", "bytes=5-1", "bytes=a-b", "bytes=-", "bytes=0-1,2-3," * 50, "x"),
    "Accept": ("text/event-stream", "*/*;q=\xff", "application/json"),
    "Accept-Language": ("\xff", "de;q=x", "," * 500),
    "If-None-Match": ("*", '"', "\xff"),
    "If-Modified-Since": ("yesterday", "Thu, 01 Jan 1970 00:00:00 GMT"),
    "Inference-Header-Content-Length": ("0", "5", "-1", "9" * 5000, "²", "x", "1e3"),
    "X-Forwarded-Host": ("evil.example", "\xff", ""),
    "X-Forwarded-Proto": ("https", "javascript", "\xff"),
    "X-Forwarded-For": ("1.2.3.4", "\xff"),
    "X-Gradio-User": ("app", "\xff"),
    "Content-Encoding": ("gzip", "br", "x"),
    "Sec-Fetch-Site": ("cross-site", "same-origin", "none", "\xff"),
    "Access-Control-Request-Method": ("POST", "\xff"),
    "Expect": ("100-continue", "x"),
    "Upgrade": ("websocket", "h2c"),
    "Accept-Encoding": ("gzip", "identity;q=0", "\xff"),
}
METHODS = ("GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW")


@dataclass(frozen=True)
class Sent:
    """One request."""

    method: str
    target: str
    body: bytes
    headers: list[tuple[str, str]] = field(default_factory=list)


def routes_of(page: Page) -> list[tuple[str, tuple[str, ...]]]:
    """The path and the methods of every route of a server and of its page."""
    app: Any = page._server.config.app
    routes = [*_routes(app), *(_routes(page._gradio_app) if page._gradio_app else [])]
    return sorted({(route.path, tuple(sorted(getattr(route, "methods", None) or ["GET"]))) for route in routes})


def _routes(router: Any) -> Iterator[Any]:
    """The routes with a path, also those of routers inside."""
    for route in router.routes:
        if inner := getattr(route, "original_router", None):  # of FastAPI
            yield from _routes(inner)
        elif getattr(route, "path", ""):
            yield route


def make_request(source: random.Random, routes: list[tuple[str, tuple[str, ...]]]) -> Sent:
    """One request from a source of random numbers."""
    path, methods = source.choice(routes)
    method = source.choice(methods) if source.random() < 0.7 else source.choice(METHODS)
    target = re.sub(r"\{[^}]*\}", lambda match: _segment(source, match[0]), path)
    if source.random() < 0.5:
        names = (
            "version",
            "top_k",
            "verdict",
            "truth",
            "keep_image",
            "session_hash",
            "upload_id",
            "__theme",
            "view",
            "a",
        )
        query = "&".join(f"{source.choice(names)}={_text(source)}" for _ in range(source.randint(1, 4)))
        target += f"?{query}"
    kind, body = _body(source)
    headers = [("Content-Type", source.choice(TYPES) if source.random() < 0.3 else kind)]
    for name in source.sample(sorted(HEADERS), source.randint(0, 3)):
        headers.append((name, source.choice(HEADERS[name])))
    return Sent(method, target[:8000], body, headers)


def _text(source: random.Random) -> str:
    """A value in a URL: most of them percent-encoded, some with bytes that are no UTF-8."""
    if source.random() < 0.2:
        return source.choice(
            ("%00", "%ff%fe", "%", "%zz", "%0d%0aX:%20y", "1", "champion", "right", "wrong", "red", "9" * 400)
        )
    value = source.choice(ODD)
    return quote(str(value).encode("utf-8", "replace")[:2000])


def _segment(source: random.Random, name: str) -> str:
    known = {"{name}": "colours", "{version}": "1", "{api_name}": "predict", "{session_hash}": "fuzz"}
    return known[name] if name in known and source.random() < 0.6 else _text(source)


def _body(source: random.Random) -> tuple[str, bytes]:
    """A content type and a body: JSON that is changed in a few places, a form, an image, or bytes."""
    way = source.random()
    if way < 0.6:
        value = json.loads(json.dumps(source.choice(VALID)))
        for _ in range(source.randint(0, 3)):
            value = _changed(source, value)
        content = json.dumps(value).encode("utf-8", "replace")
        return "application/json", _damaged(source, content) if source.random() < 0.1 else content
    if way < 0.8:
        name = source.choice(("image", "files", "", "a\\", "x" * 3000))
        head = (
            f'Content-Disposition: form-data; name="{name}"; filename="{source.choice(("a.png", "../a", "%00", ""))}"'
        )
        content = b"--b\r\n" + head.encode() + b"\r\nContent-Type: image/png\r\n\r\n" + IMAGE + b"\r\n--b--\r\n"
        return "multipart/form-data; boundary=b", _damaged(source, content) if source.random() < 0.6 else content
    if way < 0.9:
        return "image/png", _damaged(source, IMAGE)
    return "text/csv", source.choice(
        (b"", b"image\n" + TEXT.encode(), b"\0\n,", source.randbytes(200), b"image\n" * 99)
    )


def _changed(source: random.Random, value: Any) -> Any:
    """A JSON value with one odd value somewhere in it, one key less, or one level more."""
    if isinstance(value, dict) and value and source.random() < 0.85:
        key = source.choice(sorted(value))
        if source.random() < 0.15:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: _changed(source, value[key])}
    if isinstance(value, list) and value and source.random() < 0.85:
        index = source.randrange(len(value))
        return [*value[:index], _changed(source, value[index]), *value[index + 1 :]]
    return [value] * source.choice((1, 2, 150)) if source.random() < 0.15 else source.choice(ODD)


def _damaged(source: random.Random, content: bytes) -> bytes:
    """Bytes with a few changed, and often without their end."""
    damaged = bytearray(content)
    for _ in range(source.randint(1, 8)):
        damaged[source.randrange(len(damaged))] = source.randrange(256)
    return bytes(damaged[: source.randrange(len(damaged))] if source.random() < 0.3 else damaged)


def send(page: Page, sent: Sent, timeout: float = 20) -> tuple[int, bytes]:
    """The status, and the body if it has an end; 0 where the server closes the connection without an answer."""
    connection = http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=timeout)
    try:
        connection.putrequest(sent.method, quote(sent.target, safe="/?&=%:@$+,;!*'()~[]"), skip_accept_encoding=True)
        for name, value in (*sent.headers, ("Content-Length", str(len(sent.body)))):
            connection.putheader(name, value.encode("latin-1"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders(sent.body)
        response = connection.getresponse()
        ends = "text/event-stream" not in response.headers.get("content-type", "")
        return response.status, response.read(2**20) if ends else b""
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return 0, b""
    finally:
        connection.close()
