"""What the parts of `serving.py` share: clients, servers as processes, bare loops, verdicts."""

import contextlib
import io
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import onnxruntime
import psutil
from PIL import Image

from vitcifar.inference.machine import available_cores
from vitcifar.registry.registry import Registry
from vitcifar.release.manifest import INT8_FILE, ONNX_FILE

CORES = available_cores()
TURNS = 3


class Client:
    """One keep-alive connection that sends the same request again and again, as cheaply as Python can."""

    def __init__(self, url: str, path: str, kind: str, body: bytes) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "", parts.port or 80)
        self.connection = socket.create_connection(self.address, 60)
        head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
        self.request = head.encode() + b"\r\n\r\n" + body

    def ask(self) -> tuple[int, bytes]:
        """The status and the body of one response."""
        self.connection.sendall(self.request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._more()
        return int(head.split(maxsplit=2)[1]), body

    def _more(self) -> bytes:
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data


def image_file(side: int, seed: int = 0, kind: str = "JPEG") -> bytes:
    """A smooth image as a file, about as large as a photo of that size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (max(2, side // 16), max(2, side // 16), 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(buffer, kind, quality=90)
    return buffer.getvalue()


def bare(path: Path, num_threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A file in onnxruntime as it comes, but for the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["probabilities"], {"image": image[None]})[0]


def rate(work: Sequence[Callable[[], Any]], seconds: float) -> float:
    """Calls per second, with one thread for each piece of work."""
    stop, counts = time.perf_counter() + seconds, [0] * len(work)

    def run(index: int) -> None:
        while time.perf_counter() < stop:
            work[index]()
            counts[index] += 1

    start = time.perf_counter()
    with ThreadPoolExecutor(len(work)) as threads:
        list(threads.map(run, range(len(work))))
    return sum(counts) / (time.perf_counter() - start)


def durations(work: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """How long each call took, in milliseconds, with one thread for each piece of work."""
    stop, times = time.perf_counter() + seconds, []

    def run(one: Callable[[], Any]) -> None:
        while (start := time.perf_counter()) < stop:
            one()
            times.append(1e3 * (time.perf_counter() - start))

    with ThreadPoolExecutor(len(work)) as threads:
        list(threads.map(run, work))
    return times


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(arguments: Sequence[str], url: str, log: Path) -> Iterator[tuple[psutil.Process, float]]:
    """A server, as soon as it answers at `url`, and the seconds that it took to; ended afterwards."""
    start = time.perf_counter()
    with log.open("wb") as file, subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=file) as child:
        try:
            while True:
                try:
                    urlopen(url, timeout=5).close()
                    break
                except OSError:
                    if child.poll() is not None:
                        raise SystemExit(f"{' '.join(arguments)} ended:\n{log.read_text()}") from None
                    time.sleep(0.02)
            yield psutil.Process(child.pid), time.perf_counter() - start
        finally:
            with contextlib.suppress(psutil.Error):
                family = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
                for one in family:
                    one.terminate()
                for one in psutil.wait_procs(family, timeout=20)[1]:
                    one.kill()


@contextlib.contextmanager
def our_server(folder: Path, model: str, *options: str) -> Iterator[tuple[str, psutil.Process, float]]:
    """`vitcifar app`: its URL, process, and the seconds until it is ready."""
    port = free_port()
    arguments = [
        "-c",
        "from vitcifar.cli import main; main()",
        "app",
        "--port",
        str(port),
        "--model-name",
        model,
        *options,
    ]
    arguments += [] if "--tracking-uri" in options else ["--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    url = f"http://127.0.0.1:{port}"
    with process(arguments, f"{url}/health/ready", folder / "app.log") as (running, seconds):
        yield url, running, seconds


def verdict(name: str, value: float, target: str, met: bool, unit: str = "") -> None:
    print(f"  {name}: {value:.2f}{unit} (target {target}) {'met' if met else 'MISSED'}", flush=True)


def onnx_file(model: str) -> Path:
    return Registry(model).pull("champion").path(INT8_FILE if model == "int8" else ONNX_FILE)
