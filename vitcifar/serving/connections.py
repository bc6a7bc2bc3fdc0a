"""Connections to the server: how many are open, and how long one may take to say what it wants.

uvicorn limits neither. Past the limit of open files, asyncio accepts nobody for a second and writes a traceback, again
and again: the server would be deaf, and its log full. Headers of any size would be kept: of uvicorn's two parsers,
httptools (half a millisecond of CPU time less for each request than h11) has no limit of its own.
"""

import asyncio
import contextlib
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_SECONDS = 10.0  # until the headers of a request are complete
MAX_HEADER_BYTES = 64 * 2**10  # of a request, while they are incomplete
MAX_CONNECTIONS = 2000
OTHER_FILES = 256  # open files besides connections: databases, decoders, versions that are read
BACKLOG = 128  # connections that are accepted at once, before one of them can be closed


def max_connections() -> int:
    """How many connections fit into this process's limit of open files, which is raised as far as it may be."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        enough = MAX_CONNECTIONS + OTHER_FILES + BACKLOG
        if soft < enough and soft != resource.RLIM_INFINITY:
            soft = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft != resource.RLIM_INFINITY:
            return max(BACKLOG, min(MAX_CONNECTIONS, soft - OTHER_FILES - BACKLOG))
    return MAX_CONNECTIONS


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection that is closed when its request does not come, or to make room for another while it has none."""

    limit = MAX_CONNECTIONS  # of the server; `limited_to` makes another
    header_timer: asyncio.TimerHandle | None = None
    since = 0.0  # when it began to wait for a request
    header_bytes = 0  # of the request that it waits for

    @property
    def idle(self) -> bool:
        """Whether it has no request whose headers are complete."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.since = self.loop.time()
        self.header_timer = self.loop.call_later(HEADER_SECONDS, transport.close)
        if len(self.connections) > self.limit:
            waiting = [connection for connection in self.connections if connection.idle]
            oldest = min(waiting, key=lambda connection: connection.since)
            oldest.transport.close()
            self.connections.discard(oldest)  # as `connection_lost` does, but only in the loop's next turn

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.idle:
            self._stop_timer()
            self.header_bytes = 0
            return
        self.header_bytes += len(data)
        if self.header_bytes > MAX_HEADER_BYTES:
            self.transport.close()
        elif self.header_timer is None:
            self.header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None


def limited_to(limit: int) -> type[asyncio.Protocol]:
    """Connections of a server that keeps at most `limit` of them open."""
    return type("Connection", (Connection,), {"limit": limit})
