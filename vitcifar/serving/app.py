"""Serves the page of a version: tries the port, opens the version, starts the server, follows the alias."""

import os
import signal
import socket
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from vitcifar.data.image import MAX_BYTES
from vitcifar.errors import ServingError
from vitcifar.serving import html, layout
from vitcifar.serving.middleware import EVERYWHERE, LOCAL, RequestGuard
from vitcifar.serving.model_pool import ModelPool

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry

POLL_SECONDS = 2.0  # between two looks at the registry, and at the server by an open page
MAX_WAITING = 64  # questions in the queue; the next one is told to come back


class Page:
    """A page that is being served: `url`, `wait` until it is stopped, `close` it."""

    def __init__(self, url: str, blocks: Any, pool: ModelPool) -> None:
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
    registry: "Registry",
    version: str = "champion",
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    num_threads: int = 0,
    allowed_hosts: tuple[str, ...] = (),
    poll_seconds: float = POLL_SECONDS,
) -> Page:
    """Open a version, serve its page and follow its alias; returns once the page answers.

    `port` 0 takes a free one. `allowed_hosts` are further names under which the page is reached.
    Raises ServingError when the port cannot be had, RegistryError or ReleaseError when the version cannot.
    """
    port = free_port(host, port)
    pool = ModelPool(registry, version, num_threads=num_threads)
    blocks = layout.build(pool, poll_seconds)
    try:
        start(blocks, pool, host, port, allowed_hosts)
    except OSError as error:  # somebody took the port since it was tried
        raise port_error(host, port, error) from error
    pool.follow(poll_seconds)
    shown = "127.0.0.1" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    return Page(f"http://{shown}:{port}", blocks, pool)


def free_port(host: str, port: int) -> int:
    """The port, tried out; 0 becomes one that is free. Raises ServingError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except (OSError, OverflowError) as error:
            raise port_error(host, port, error) from error
        return tried.getsockname()[1]


def port_error(host: str, port: int, error: Exception) -> ServingError:
    if isinstance(error, (socket.gaierror, OverflowError)) or getattr(error, "errno", 0) == 99:
        return ServingError(f"{host}:{port} is no address of this machine: type --host 127.0.0.1 --port 7860.")
    if isinstance(error, PermissionError):
        return ServingError(f"Port {port} needs more rights than you have: type --port 7860, or another above 1023.")
    free = port + 1 if port < 65535 else 7860
    return ServingError(f"Port {port} on {host} is in use: type --port {free}, or stop the program that uses it.")


def start(blocks: Any, pool: ModelPool, host: str, port: int, allowed_hosts: tuple[str, ...]) -> None:
    """Start the server in a thread of its own. Raises OSError when the port is taken."""
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def health(request: Any) -> JSONResponse:
        state = pool.state
        answer = {
            "status": "ok",
            "model": state.current.model_name,
            "version": state.current.version,
            "asked_for": pool.spec,
            "aliases": list(state.aliases(state.current.version)),
            "release_id": state.current.release.release_id,
            "problem": state.problem,
        }
        return JSONResponse(answer)

    # Gradio asks its own address whether the server is up: never through a proxy that is set for the outside.
    around = [os.environ.get("no_proxy", ""), *LOCAL, host]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, around))
    blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=2).launch(
        server_name=host,
        server_port=port,
        app_kwargs={
            "routes": [Route("/health", health)],
            "middleware": [Middleware(RequestGuard, host=host, allowed_hosts=allowed_hosts)],
        },
        theme=layout.theme(),
        css=html.STYLE,
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
