"""Ctrl-C, SIGTERM and SIGHUP: each stops a command once, as one exception, and never amid a write to MLflow.

MLflow's session would keep the SQLite store locked until that exception is gone, and so keep the run from ending.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = [int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
QUIET_SECONDS = 3.0
HELD_SECONDS = 10.0


class Stopped(KeyboardInterrupt):
    """A signal stopped the command; `exit_code` is the shell's for it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def install() -> None:
    """Raise Stopped at a signal, but not at one that was ignored already, as by `nohup`.

    The next QUIET_SECONDS are for tidying up: further signals are ignored. Then Stopped is raised again if the process
    still runs: code that Python calls by itself, such as a finalizer, may have swallowed the first.
    """
    quiet_until = 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal quiet_until
        if time.monotonic() > quiet_until:
            quiet_until = time.monotonic() + QUIET_SECONDS
            if hasattr(signal, "setitimer"):  # Windows has none
                signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
                signal.setitimer(signal.ITIMER_REAL, QUIET_SECONDS)
            raise Stopped(number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """For work of a stopped command that takes longer than QUIET_SECONDS: only a further signal interrupts it."""
    again = 0.0
    if hasattr(signal, "setitimer"):
        again, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        if again:
            signal.setitimer(signal.ITIMER_REAL, QUIET_SECONDS)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Deliver a signal at the end of the block, or at once when the block has taken longer than HELD_SECONDS."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        yield
        return
    start = time.monotonic()
    arrived: list[int] = []
    handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}

    def hold(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if time.monotonic() - start > HELD_SECONDS:
            handlers[number](number, frame)

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in arrived[:1]:  # also behind an error, which the caller may handle
            signal.raise_signal(number)
