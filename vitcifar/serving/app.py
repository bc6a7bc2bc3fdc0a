"""Starts the page of a version: checks the port, loads the version, starts the server and follows the alias.

The ASGI middleware decides which hosts the page serves and how large a request may be, and adds security headers.
Starlette's TrustedHostMiddleware cannot allow every IP address, and its response does not name --allowed-hosts.
"""

import ipaddress
import os
import signal
import socket
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitcifar.data.image import MAX_BYTES
from vitcifar.errors import ServingError
from vitcifar.registry.registry import Registry
from vitcifar.serving import layout
from vitcifar.serving.model_pool import ModelPool

if TYPE_CHECKING:
    import gradio

POLL_SECONDS = 2.0  # how often the pool polls the registry, and an open page the pool
MAX_QUEUE_SIZE = 64  # predictions; the next request is rejected
PAGE_CSS = Path(__file__).with_name("page.css")
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


class Page:
    """A running page: its `url`; `wait` serves until it is stopped, `close` stops it."""

    def __init__(self, url: str, blocks: "gradio.Blocks", pool: ModelPool) -> None:
        self.url = url
        self.pool = pool
        self._blocks = blocks

    def wait(self) -> None:
        """Serve until Ctrl-C or SIGTERM, then close."""
        stop = threading.Event()

        def on_signal(number: int, frame: FrameType | None) -> None:
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        stop.wait()
        self.close()

    def close(self) -> None:
        """Stop the server."""
        self.pool.close()
        self._blocks.close(verbose=False)


def launch(
    registry: Registry,
    version: str = "champion",
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    allowed_hosts: tuple[str, ...] = (),
    poll_seconds: float = POLL_SECONDS,
) -> Page:
    """Load a version, serve its page and follow its alias; returns when the page is up.

    `port` 0 takes a free one. `allowed_hosts` are more host names of the page. Raises ServingError when the address
    is not available, RegistryError or ReleaseError when the version cannot be loaded.
    """
    port = free_port(host, port)
    pool = ModelPool(registry, version)
    blocks = layout.build_page(pool, poll_seconds)
    try:
        start(blocks, pool, host, port, allowed_hosts)
    except OSError as error:  # another program took the port after `free_port`
        raise port_error(host, port, error) from error
    pool.follow(poll_seconds)
    netloc = "127.0.0.1" if host in ALL_INTERFACES else f"[{host}]" if ":" in host else host
    return Page(f"http://{netloc}:{port}", blocks, pool)


def free_port(host: str, port: int) -> int:
    """The port if it is available, or any free one for 0. Raises ServingError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise port_error(host, port, error) from error
        return int(probe.getsockname()[1])


def port_error(host: str, port: int, error: Exception) -> ServingError:
    if isinstance(error, (socket.gaierror, OverflowError)) or getattr(error, "errno", 0) == 99:
        return ServingError(f"{host}:{port} is not an address of this machine: type --host 127.0.0.1 --port 7860.")
    if isinstance(error, PermissionError):
        return ServingError(f"Port {port} needs administrator rights: type --port 7860, or another above 1023.")
    other = port + 1 if port < 65535 else 7860
    return ServingError(f"Port {port} on {host} is in use: type --port {other}, or stop the program that uses it.")


def start(blocks: "gradio.Blocks", pool: ModelPool, host: str, port: int, allowed_hosts: tuple[str, ...]) -> None:
    """Start the server in a thread. Raises OSError when the port is in use."""

    def health(request: Request) -> JSONResponse:
        state = pool.state
        return JSONResponse(
            {
                "status": "ok",
                "model": state.current.model_name,
                "version": state.current.version,
                "spec": pool.spec,
                "aliases": list(state.aliases(state.current.version)),
                "release_id": state.current.manifest.release_id,
                "problem": state.problem,
            }
        )

    # Gradio requests its own address to see whether the server is up: never through a proxy.
    no_proxy = [os.environ.get("no_proxy", ""), *LOOPBACK, host]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, no_proxy))
    blocks.queue(max_size=MAX_QUEUE_SIZE, default_concurrency_limit=2).launch(
        server_name=host,
        server_port=port,
        app_kwargs={
            "routes": [Route("/health", health)],
            "middleware": [
                Middleware(SecurityHeaders),
                Middleware(HostCheck, host=host, allowed_hosts=allowed_hosts),
                Middleware(RequestLimits),
            ],
        },
        theme=layout.theme(),
        css_paths=PAGE_CSS,
        max_file_size=MAX_BYTES,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        num_workers=0,
        footer_links=["api"],
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


class HostCheck:
    """Responds with status 400 to a Host header that does not name this server (DNS rebinding)."""

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: tuple[str, ...] = ()) -> None:
        self.app = app
        self.any_ip_address = host in ALL_INTERFACES
        self.names = {name.lower() for name in (*LOOPBACK, host, *allowed_hosts)} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.allows(Headers(scope=scope).get("host", "")):
            return await self.app(scope, receive, send)
        detail = "This host name is not allowed: start the page with --allowed-hosts and the name."
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
