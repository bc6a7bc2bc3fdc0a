"""Downloads that fail within seconds when the server does not answer."""

import contextlib
import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

REACH_SECONDS = 6.0  # limit for reaching the server, name resolution included
STALL_SECONDS = 30.0  # limit without any data during a download


def why_unreachable(url: str) -> str:
    """Why the server of `url` is unreachable ("" = it answers). In a thread, since name resolution has no timeout."""
    outcome = [f"no answer in {REACH_SECONDS:.0f} seconds"]

    def request() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS):
                outcome[0] = ""
        except urllib.error.HTTPError:
            outcome[0] = ""  # it answers; the download reports the status
        except (OSError, http.client.HTTPException) as error:
            outcome[0] = str(getattr(error, "reason", error)) or type(error).__name__

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return outcome[0]


@contextlib.contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Limit every new socket: torchvision sets no timeout, so a silent server would block forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
