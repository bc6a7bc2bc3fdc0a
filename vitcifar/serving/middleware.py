"""What every request to the page passes first: the host it names, its size; and the headers that every answer gets."""

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vitcifar.data.image import MAX_BYTES

# The longest request that can hold one image as base64, with something around it.
MAX_REQUEST_BYTES = MAX_BYTES * 4 // 3 + 2**20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

EVERYWHERE = ("0.0.0.0", "::", "")  # listening on all of the machine's addresses
LOCAL = ("localhost", "127.0.0.1", "::1")

# The page may load, and talk to, nothing but the server it came from, and no other page may frame it.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class TooLarge(Exception):
    """A request that grew over the limit while it was read."""


class RequestGuard:
    """ASGI middleware: status 400 for a foreign Host header, 413 for a request that is too large."""

    def __init__(self, app: Any, *, host: str, allowed_hosts: tuple[str, ...] = ()) -> None:
        self.app = app
        self.any_address = host in EVERYWHERE
        self.names = {*LOCAL, host.lower(), *(name.lower() for name in allowed_hosts)}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if not self.knows(headers.get(b"host", b"").decode("latin-1")):
            return await refuse(send, 400, "This page does not answer under that name: start it with --allowed-hosts.")
        too_large = f"The request is larger than {MAX_REQUEST_BYTES // 2**20} MiB."
        if int(headers.get(b"content-length", b"0")) > MAX_REQUEST_BYTES:
            return await refuse(send, 413, too_large)
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        try:
            await self.app(scope, counted(receive), send_on)
        except TooLarge:
            if not started:
                await refuse(send, 413, too_large)

    def knows(self, host: str) -> bool:
        """Whether a Host header names this page. An address cannot be made to point elsewhere, a name can."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").lower()
        return name in self.names or (self.any_address and is_address(name))


def counted(receive: Receive) -> Receive:
    """The same messages, until they hold more than a request may. Raises TooLarge."""
    read = 0

    async def receive_on() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MAX_REQUEST_BYTES:
            raise TooLarge
        return message

    return receive_on


def is_address(name: str) -> bool:
    """Whether a host is an IP address rather than a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def refuse(send: Send, status: int, sentence: str) -> None:
    """Answer with one sentence, as JSON."""
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
