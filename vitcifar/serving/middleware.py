"""The hosts and the sub-path of the server, the limits of a request, and the security headers of every response.

Starlette's TrustedHostMiddleware cannot allow every IP address, and its response does not name --allowed-hosts.
"""

import asyncio
import contextlib
import fnmatch
import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitcifar.data.image import MAX_BYTES
from vitcifar.errors import ServingError

MAX_REQUEST_BYTES = 16 * 2**20  # unless the server is started with another limit
MAX_AROUND_BYTES = 2**16  # of a request around its image: headers of a form, JSON
MAX_SEND_SECONDS = 60.0  # until all of a request has arrived
ALL_INTERFACES = ("0.0.0.0", "::", "")
FORWARDED = (b"host", b"x-forwarded-host", b"x-forwarded-proto")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# The page loads from, and connects to, its own server only, and no other page may frame it.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class SecurityHeaders:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class SubPath:
    """Serves at a sub-path, whether the proxy in front strips it from the requests or not."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and self.root_path:
            stripped = not f"{scope['path']}/".startswith(f"{self.root_path}/")
            path = self.root_path + scope["path"] if stripped else scope["path"]
            scope = {**scope, "path": path, "root_path": self.root_path}
        await self.app(scope, receive, send)


class PublicOrigin:
    """Tells the app the origin at which visitors reach it, such as https://photos.example, whatever a proxy says."""

    def __init__(self, app: ASGIApp, origin: str) -> None:
        self.app = app
        self.scheme, _, self.host = origin.partition("://")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.host:
            headers = [(name, value) for name, value in scope["headers"] if name not in FORWARDED]
            scope = {**scope, "scheme": self.scheme, "headers": [*headers, (b"host", self.host.encode())]}
        await self.app(scope, receive, send)


class HostCheck:
    """Responds with status 400 to a Host header that does not name this server (DNS rebinding)."""

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: tuple[str, ...] = ()) -> None:
        self.app = app
        self.any_ip_address = host in ALL_INTERFACES
        self.hosts = [(name, "") for name in (*LOOPBACK, host.lower()) if name] + read_hosts(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.allows(Headers(scope=scope).get("host", "")):
            return await self.app(scope, receive, send)
        detail = "This host name is not allowed: start the server with --allowed-hosts and the name."
        await JSONResponse({"detail": detail}, 400)(scope, receive, send)

    def allows(self, header: str) -> bool:
        """Whether a Host header names this server. DNS can point a name elsewhere, but not an IP address."""
        name, port = split_port(header.lower())
        if any(fnmatch.fnmatchcase(name, known) and only in ("", port) for known, only in self.hosts):
            return name != ""
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_ip_address


class OriginCheck:
    """Responds with status 403 to what a web page of another server makes a visitor's browser send.

    A browser sends a form to any server, with the visitor's password; and Gradio lets every server of the visitor's own
    machine read its answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_foreign(scope["method"], Headers(scope=scope)):
            return await self.app(scope, receive, send)
        detail = "This comes from a web page of another server, from which nothing is taken."
        await JSONResponse({"detail": detail}, 403)(scope, receive, send)


def is_foreign(method: str, headers: Headers) -> bool:
    """Whether a request comes from a web page of another server, and not from a program or by a link."""
    site = headers.get("sec-fetch-site")  # of browsers, to this machine and over https; else there is Origin
    if site:
        return site not in ("same-origin", "none") and (method not in SAFE_METHODS or "origin" in headers)
    _, _, host = headers.get("origin", "").partition("://")
    own = {headers.get(name, "").lower() for name in ("host", "x-forwarded-host")} - {""}  # no web page can set them
    return "origin" in headers and host.lower() not in own


def split_port(host: str) -> tuple[str, str]:
    """The name and the port, or "", of a host; an IPv6 address loses its brackets."""
    if host.count(":") > 1 and not host.startswith("["):
        return host, ""
    name, _, port = (host, "", "") if ":" not in host or host.endswith("]") else host.rpartition(":")
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name, port


def read_hosts(hosts: Iterable[str]) -> list[tuple[str, str]]:
    """The name, in which * stands for any text, and the port ("" = any) of each host that --allowed-hosts names.

    Raises ServingError for one that no Host header can name.
    """
    read = []
    for host in hosts:
        name, port = split_port(host.lower())
        with contextlib.suppress(UnicodeError):
            name = name.encode("idna").decode()  # as browsers send it
        if not re.fullmatch(r"[a-z0-9*._:-]+", name) or not re.fullmatch(r"\d*|\*", port) or host.endswith(":"):
            raise ServingError(
                f"{host!r} in --allowed-hosts is no host name: type names such as photos.example, "
                "photos.example:8443 or *.photos.example, without https:// and without a path."
            )
        read.append((name, "" if port in ("80", "443", "*") else port))  # browsers send neither 80 nor 443
    return read


def largest_image(max_request: int) -> int:
    """Bytes of the largest image that fits as base64 into a request with so many; a multiple of a quarter MiB."""
    return min(MAX_BYTES, (max_request - MAX_AROUND_BYTES) * 3 // 4 // 2**18 * 2**18)


class RequestLimits:
    """Responds with status 413 to a request above `max_bytes`, with 408 to one that is sent too slowly."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_REQUEST_BYTES) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = (
            f"The request is larger than {self.max_bytes // 2**20} MiB: send a smaller image or fewer of them, or "
            "start the server with a larger --max-request-mib."
        )
        num_bytes, complete = 0, False
        deadline = asyncio.get_running_loop().time() + MAX_SEND_SECONDS

        async def receive_limited() -> Message:
            nonlocal num_bytes, complete
            if complete:  # whoever asks now waits for the client to leave
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                late = f"The request was not sent within {MAX_SEND_SECONDS:g} seconds: send a smaller image."
                raise HTTPException(408, late, headers={"Connection": "close"}) from None
            complete = not message.get("more_body")
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                raise HTTPException(413, detail)
            return message

        if scope["type"] == "http" and int(Headers(scope=scope).get("content-length", 0)) > self.max_bytes:
            return await JSONResponse({"detail": detail}, 413)(scope, receive, send)
        await self.app(scope, receive_limited if scope["type"] == "http" else receive, send)
