"""The bounded queue of predictions: a few requests at a time run in threads, others wait, too many are refused."""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from vitcifar.inference.machine import available_cores

MAX_WAITING = 64  # requests
MAX_WAITING_BYTES = 512 * 2**20  # of their bodies, all in memory
RETRY_AFTER = 1  # seconds
CLIENT_LEFT = 499  # the status in the metrics; nobody receives it
Result = TypeVar("Result")


@dataclasses.dataclass(eq=False)
class Turn:
    """One request: its size in bytes, how long it waited, and whether its client has left."""

    num_bytes: int
    asked: float = dataclasses.field(default_factory=time.perf_counter)
    queue_ms: float = 0.0
    left: bool = False


class PredictionQueue:
    """Runs the work of requests in `num_workers` threads, in the order in which they came."""

    def __init__(self, num_workers: int = 0, max_waiting: int = MAX_WAITING) -> None:
        self.max_waiting = max_waiting
        self._waiting: set[Turn] = set()
        # Two as a minimum: one image is decoded while another is classified.
        self._threads = ThreadPoolExecutor(num_workers or max(2, available_cores()), thread_name_prefix="predict")

    @property
    def depth(self) -> int:
        """How many requests wait for a thread."""
        return len(self._waiting)

    def check(self, num_bytes: int = 0) -> None:
        """Raises HTTPException, status 503 with `Retry-After`, when one more request does not fit."""
        waiting_bytes = sum(turn.num_bytes for turn in self._waiting)
        if self.depth >= self.max_waiting or (self.depth and waiting_bytes + num_bytes > MAX_WAITING_BYTES):
            detail = f"{self.depth} requests are waiting, as many as the server takes: send it again in a moment."
            raise HTTPException(503, detail, headers={"Retry-After": str(RETRY_AFTER)})

    async def run(self, request: Request, num_bytes: int, work: Callable[[Turn], Result]) -> Result:
        """The result of `work` in a thread. The body of the request has been read.

        A client that leaves is not computed for: its request leaves the queue, and `Turn.left` tells work that began.
        Raises HTTPException when the queue is full or the client has left, and what `work` raises.
        """
        self.check(num_bytes)
        turn = Turn(num_bytes)

        def start() -> Result:
            self._waiting.discard(turn)
            turn.queue_ms = 1e3 * (time.perf_counter() - turn.asked)
            return work(turn)

        self._waiting.add(turn)
        result = asyncio.get_running_loop().run_in_executor(self._threads, start)
        leaving = asyncio.ensure_future(_until_left(request))
        leaving.add_done_callback(lambda _: result.cancel())
        try:
            return await result
        except asyncio.CancelledError:
            if not leaving.done():  # the server stops
                raise
            raise HTTPException(CLIENT_LEFT, "The client left before its prediction.") from None
        finally:
            turn.left = True
            self._waiting.discard(turn)
            result.cancel()  # if it still waits, no thread takes it
            leaving.cancel()

    def close(self) -> None:
        """Refuse further work; what has begun ends."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
