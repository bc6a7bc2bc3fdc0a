"""Downloads that fail within seconds when the server does not answer."""

import contextlib
import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

REACH_SECONDS = 6.0  # how long to look for the server, names included
STALL_SECONDS = 30.0  # how long a started download may stand still


def why_unreachable(url: str) -> str:
    """Why the server does not answer ("" = it does). In a thread, because looking up a name has no timeout."""
    outcome = [f"no answer in {REACH_SECONDS:.0f} seconds"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS):
                outcome[0] = ""
        except urllib.error.HTTPError:
            outcome[0] = ""  # it answers; what it has against the question, the download will say
        except (OSError, http.client.HTTPException) as error:
            outcome[0] = str(getattr(error, "reason", error)) or type(error).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return outcome[0]


@contextlib.contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision opens its connections without a timeout, so a server that falls silent would hold us for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
