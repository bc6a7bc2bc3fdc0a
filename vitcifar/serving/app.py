"""Starts the page of a version: checks the address, loads the version, starts the server and follows the alias."""

import asyncio
import contextlib
import hmac
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from vitcifar.data.image import MAX_BYTES
from vitcifar.errors import ServingError
from vitcifar.registry.registry import Registry
from vitcifar.serving import layout
from vitcifar.serving.decoder import start_decoder
from vitcifar.serving.middleware import ALL_INTERFACES, HostCheck, RequestLimits, SecurityHeaders
from vitcifar.serving.model_pool import ModelPool
from vitcifar.signals import SIGNALS

if TYPE_CHECKING:
    import gradio

POLL_SECONDS = 2.0  # how often the pool polls the registry, and an open page the pool
MAX_QUEUE_SIZE = 64  # predictions; the next request is rejected
MAX_SESSIONS = 200  # of the page, about 40 kB each; an evicted one goes on as a new one
PAGE_CSS = Path(__file__).with_name("page.css")


class Page:
    """A running page: all its `urls`; `wait` serves until it is stopped, `close` stops it."""

    def __init__(self, urls: Sequence[str], blocks: "gradio.Blocks", pool: ModelPool) -> None:
        self.urls = urls
        self.pool = pool
        self._blocks = blocks

    @property
    def url(self) -> str:
        """The URL on this machine."""
        return self.urls[0]

    def wait(self) -> None:
        """Serve until Ctrl-C, SIGTERM or SIGHUP, then close."""
        stop = threading.Event()

        def on_signal(number: int, frame: FrameType | None) -> None:
            stop.set()

        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as by `nohup`
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
    passwords: Mapping[str, str] | None = None,
    public: bool = False,
    poll_seconds: float = POLL_SECONDS,
) -> Page:
    """Load a version, serve its page and follow its alias; returns when the page is up.

    `port` 0 takes a free one. `allowed_hosts` are more host names of the page. With `passwords`, by user name, people
    and programs must log in; without, `public` opens the page to other machines. Raises ServingError when the address
    is not available or not `public`, RegistryError or ReleaseError when the version cannot be loaded.
    """
    if not (passwords or public or is_loopback(host)):
        raise ServingError(
            f"{host} would open the page to other machines without a password: add --auth FILE, with lines "
            "NAME:PASSWORD, or --public yes."
        )
    port = free_port(host, port)
    pool = ModelPool(registry, version)
    try:
        with without_proxies():
            blocks = layout.build_page(pool, poll_seconds)
            start(blocks, pool, host, port, allowed_hosts, passwords or {})
    except OSError as error:  # another program took the port after `free_port`
        raise port_error(host, port, error) from error
    pool.follow(poll_seconds)
    start_decoder()
    return Page([f"http://{netloc}:{port}" for netloc in netlocs(host)], blocks, pool)


def read_passwords(file: Path) -> dict[str, str]:
    """The passwords by user name in a file of lines NAME:PASSWORD. Raises ServingError."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"The passwords in {file} cannot be read ({error}): write lines NAME:PASSWORD.") from error
    pairs = [(name.strip(), password) for name, _, password in (line.partition(":") for line in lines)]
    if not pairs or not all(name and password for name, password in pairs):
        raise ServingError(f"{file} is not a file of passwords: write a line NAME:PASSWORD for each user.")
    return dict(pairs)


def is_loopback(host: str) -> bool:
    """Whether a host is of this machine alone. One that has no address is: it cannot be listened on."""
    if host in ALL_INTERFACES:
        return False
    with contextlib.suppress(OSError, UnicodeError):
        return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in socket.getaddrinfo(host, None))
    return True


def netlocs(host: str) -> list[str]:
    """Where a host that is listened on can be reached: for all interfaces, every address of this machine."""
    if host not in ALL_INTERFACES:
        return [f"[{host}]" if ":" in host else host]
    families = (socket.AF_INET,) if host == "0.0.0.0" else (socket.AF_INET, socket.AF_INET6)
    addresses = [entry for entries in psutil.net_if_addrs().values() for entry in entries if entry.family in families]
    found = [f"[{entry.address}]" if entry.family == socket.AF_INET6 else entry.address for entry in addresses]
    return ["127.0.0.1", *(netloc for netloc in found if "%" not in netloc and netloc not in ("127.0.0.1", "[::1]"))]


def free_port(host: str, port: int) -> int:
    """The port if it is available, or any free one for 0. Raises ServingError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError, UnicodeError) as error:
            raise port_error(host, port, error) from error
        return int(probe.getsockname()[1])


def port_error(host: str, port: int, error: Exception) -> ServingError:
    if isinstance(error, (socket.gaierror, OverflowError, UnicodeError)) or getattr(error, "errno", 0) == 99:
        return ServingError(f"{host}:{port} is not an address of this machine: type --host 127.0.0.1 --port 7860.")
    if isinstance(error, PermissionError):
        return ServingError(f"Port {port} needs administrator rights: type --port 7860, or another above 1023.")
    other = port + 1 if port < 65535 else 7860
    return ServingError(f"Port {port} on {host} is in use: type --port {other}, or stop the program that uses it.")


def login_check(passwords: Mapping[str, str]) -> Callable[[str, str], Awaitable[bool]]:
    """Whether a name and a password belong together, for Gradio; guessing is slow."""
    guesses = asyncio.Semaphore(4)  # at once

    async def log_in(name: str, password: str) -> bool:
        async with guesses:
            right = hmac.compare_digest(passwords.get(name, "").encode(), password.encode()) and name in passwords
            if not right:
                await asyncio.sleep(1)
        return right

    return log_in


@contextlib.contextmanager
def without_proxies() -> Iterator[None]:
    """Hide the variables of proxies from Gradio: it stops at some of them, and requests its own address alone."""
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def start(
    blocks: "gradio.Blocks",
    pool: ModelPool,
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    passwords: Mapping[str, str],
) -> None:
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

    blocks.queue(api_open=False, max_size=MAX_QUEUE_SIZE, default_concurrency_limit=2).launch(
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
        auth=login_check(passwords) if passwords else None,
        max_file_size=MAX_BYTES,
        state_session_capacity=MAX_SESSIONS,
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
