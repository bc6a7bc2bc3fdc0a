"""The hosts and the sub-path of the server, how large a request may be, and the security headers of every response.

Starlette's TrustedHostMiddleware cannot allow every IP address, and its response does not name --allowed-hosts.
"""

import ipaddress

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitcifar.data.image import MAX_BYTES

MAX_REQUEST_BYTES = MAX_BYTES * 4 // 3 + 2**20  # the largest image as base64, and the JSON around it
ALL_INTERFACES = ("0.0.0.0", "::", "")
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
)


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


class HostCheck:
    """Responds with status 400 to a Host header that does not name this server (DNS rebinding)."""

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: tuple[str, ...] = ()) -> None:
        self.app = app
        self.any_ip_address = host in ALL_INTERFACES
        self.names = {name.lower() for name in (*LOOPBACK, host, *allowed_hosts)} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.allows(Headers(scope=scope).get("host", "")):
            return await self.app(scope, receive, send)
        detail = "This host name is not allowed: start the server with --allowed-hosts and the name."
        await JSONResponse({"detail": detail}, 400)(scope, receive, send)

    def allows(self, host: str) -> bool:
        """Whether a Host header names this server. DNS can point a name elsewhere, but not an IP address."""
        name = (host if host.endswith("]") else host.rsplit(":", 1)[0]).strip("[]").lower()
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_ip_address


class RequestLimits:
    """Responds with status 413 to a request that declares, or sends, more than `MAX_REQUEST_BYTES`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"The request is larger than {MAX_REQUEST_BYTES // 2**20} MiB: send a smaller image."
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > MAX_REQUEST_BYTES:
                raise HTTPException(413, detail)
            return message

        if scope["type"] == "http" and int(Headers(scope=scope).get("content-length", 0)) > MAX_REQUEST_BYTES:
            return await JSONResponse({"detail": detail}, 413)(scope, receive, send)
        await self.app(scope, receive_limited, send)
