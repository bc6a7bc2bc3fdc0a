"""Starts the server of a version: checks the address, loads the version, serves it and follows the alias."""

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import uvicorn
from starlette.exceptions import HTTPException

from vitcifar.data.image import known_formats
from vitcifar.errors import ServingError
from vitcifar.registry.registry import Registry
from vitcifar.serving.connections import BACKLOG, limited_to, max_connections
from vitcifar.serving.decoder import start_decoder
from vitcifar.serving.feedback import FeedbackStore
from vitcifar.serving.middleware import ALL_INTERFACES, MAX_REQUEST_BYTES, read_hosts
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.server import LogIn, build_server, mount_page
from vitcifar.serving.shadow import Shadow
from vitcifar.serving.suggest import read_suggestions
from vitcifar.signals import SIGNALS

POLL_SECONDS = 2.0  # how often the pool polls the registry, and an open page the pool
DRAIN_SECONDS = 8  # for requests that have begun when the server stops
KEEP_ALIVE_SECONDS = 30  # between the requests of a connection


class Page:
    """A running server, with its page or without: all its `urls`; `wait` serves until a signal, `close` stops it."""

    def __init__(
        self,
        urls: Sequence[str],
        pool: ModelPool,
        server: uvicorn.Server,
        gradio_app: Any,
        shadow: Shadow | None = None,
    ) -> None:
        self.urls = urls
        self.shadow = shadow
        self.pool = pool
        self._server = server
        self._gradio_app = gradio_app

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

    def start(self, listener: socket.socket) -> None:
        """Serve on a bound socket, in a thread; returns when requests are answered."""
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True, name="server")
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            if not self._thread.is_alive():
                raise ServingError("The server did not start: the lines above say why.")

    def close(self) -> None:
        """Stop the server: requests that have begun are answered, for at most `DRAIN_SECONDS`."""
        self.pool.close()
        self._server.should_exit = True
        if self._gradio_app:
            self._gradio_app.blocks.is_running = False
            self._gradio_app.stop_event.set()  # ends the stream of every open page
        self._thread.join(DRAIN_SECONDS + 1)
        if self.shadow:
            self.shadow.close()


def start_shadow(pool: ModelPool, store: FeedbackStore | None, spec: str) -> Shadow:
    """A challenger that sees what the pool predicts and what people say of it. Raises RegistryError."""
    shadow = Shadow(pool, spec)
    pool.watch = shadow.offer
    if store:
        store.watch = functools.partial(shadow.mark, store)
    return shadow


def launch(
    registry: Registry,
    version: str = "champion",
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    allowed_hosts: tuple[str, ...] = (),
    passwords: Mapping[str, str] | None = None,
    public: bool = False,
    page: bool = True,
    root_path: str = "",
    feedback: str = "none",
    shadow: str = "none",
    suggestions: Path | None = None,
    max_request: int = MAX_REQUEST_BYTES,
    poll_seconds: float = POLL_SECONDS,
) -> Page:
    """Load a version, serve it and follow its alias; returns when the server is up.

    `port` 0 takes a free one. `allowed_hosts` are more host names of the server, as `read_hosts` reads them. Without
    `page`, only REST is served and Gradio is not imported. `root_path` is the sub-path at which a proxy offers the
    server, or the URL. `feedback` is the SQLAlchemy URL of a store for feedback, which is taken then. `shadow` is the
    alias or number of a version that predicts the same images in the background. `suggestions` is a table of images to
    label on the page, into that store. A request has at most `max_request` bytes. With `passwords`, by user name,
    people and programs must log in; without, `public` opens the server to other machines. Raises ServingError when it
    is not `public`, or the address or the store not available, DataError for the table, RegistryError or ReleaseError
    for the version.
    """
    if not (passwords or public):
        check_loopback(host)
    known_formats()
    origin, root_path = split_root(root_path)
    allowed_hosts += (origin.partition("://")[2],) if origin else ()
    read_hosts(allowed_hosts)
    listener = bind(host, port)
    try:
        store = FeedbackStore(feedback) if feedback != "none" else None
        pool = ModelPool(registry, version)
        challenger = start_shadow(pool, store, shadow) if shadow != "none" else None
        more: dict[str, Any] = {"log_in": login_check(passwords) if passwords else None, "root_path": root_path}
        more |= {"store": store, "shadow": challenger, "max_request": max_request}
        app = build_server(pool, host=host, allowed_hosts=allowed_hosts, origin=origin, **more)
        with without_proxies():
            more["suggestions"] = read_suggestions(suggestions) if suggestions else ()
            gradio_app = mount_page(app, pool, poll_seconds, **more) if page else None
        urls = [f"http://{netloc}:{listener.getsockname()[1]}{root_path}" for netloc in netlocs(host)]
        running = Page(urls, pool, uvicorn.Server(server_config(app)), gradio_app, challenger)
        running.start(listener)
    except BaseException:
        listener.close()
        raise
    pool.follow(poll_seconds)
    start_decoder()
    return running


def server_config(app: Any) -> uvicorn.Config:
    """uvicorn's settings, with our limits of connections."""
    config = uvicorn.Config(
        app,
        http=limited_to(max_connections()),
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    logging.getLogger("uvicorn.error").addFilter(shorten_log)  # once, however many servers there are
    return config


def shorten_log(record: logging.LogRecord) -> bool:
    """A line, no traceback, for an answer that had begun: strangers can ask Gradio for events that do not exist."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, HTTPException):
        record.msg, record.args, record.exc_info = "An answer was broken off: %s", (error.__cause__,), None
    return True


def split_root(root_path: str) -> tuple[str, str]:
    """The origin ("" for a sub-path alone) and the sub-path at which a proxy offers the server. Raises ServingError."""
    scheme, is_url, rest = root_path.rpartition("://")
    host, _, path = rest.partition("/") if is_url else ("", "", root_path)
    if is_url and not (host and scheme.lower() in ("http", "https")):
        raise ServingError(
            f"{root_path!r} in --root-path is no URL of a web server: type a sub-path such as /photos, or a URL "
            "such as https://photos.example/photos."
        )
    return f"{scheme.lower()}://{host}" if is_url else "", "/".join(["", *filter(None, path.split("/"))])


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


def check_loopback(host: str) -> None:
    """Raise ServingError for a host that other machines reach."""
    if not is_loopback(host):
        raise ServingError(
            f"{host} would open the server to other machines without a password: add --auth FILE, with lines "
            "NAME:PASSWORD, or --public yes."
        )


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


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the port, or to any free one for 0. Raises ServingError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) only where the protocol is named; otherwise every answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        raise port_error(host, port, error) from error
    return listener


def port_error(host: str, port: int, error: Exception) -> ServingError:
    if isinstance(error, (socket.gaierror, OverflowError, UnicodeError)) or getattr(error, "errno", 0) == 99:
        return ServingError(f"{host}:{port} is not an address of this machine: type --host 127.0.0.1 --port 7860.")
    if isinstance(error, PermissionError):
        return ServingError(f"Port {port} needs administrator rights: type --port 7860, or another above 1023.")
    other = port + 1 if port < 65535 else 7860
    return ServingError(f"Port {port} on {host} is in use: type --port {other}, or stop the program that uses it.")


def login_check(passwords: Mapping[str, str]) -> LogIn:
    """Whether a name and a password belong together; guessing is slow."""
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
    """Hide the variables of proxies from Gradio, which stops at some of them."""
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(hidden)
