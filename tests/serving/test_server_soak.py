"""Ten minutes of everything that visitors and programs send: neither memory nor files grow with it.

VITCIFAR_SOAK_SECONDS makes it shorter, to try the test itself.
"""

import base64
import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from support.project import ROOT
from support.toys import make_image

SECONDS = float(os.environ.get("VITCIFAR_SOAK_SECONDS", "600"))
MAX_SLOPE = 1.0  # MB a minute
MAX_MORE_FILES = 64
SERVER = (
    f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
    "from pathlib import Path\nfrom support.serving import FakeRegistry\nfrom vitcifar.serving.app import launch\n"
    "folder = Path('registry'); folder.mkdir()\n"
    "page = launch(FakeRegistry(folder), port=0, feedback='sqlite:///feedback.db', poll_seconds=0.5)\n"
    "print(page.url, flush=True)\npage.wait()\n"
)
IMAGES = [make_image(colour, size, kind) for colour in ("red", "blue") for size in ((32, 32), (900, 700))
          for kind in ("PNG", "JPEG", "WEBP", "GIF")]  # fmt: skip


def ask(client: httpx.Client, source: random.Random) -> str:
    """One thing that somebody does; returns its name and what came of it."""
    content = source.choice(IMAGES)
    text = base64.b64encode(content).decode()
    way = source.choice(("form", "json", "protocol", "mlflow", "broken", "unknown", "page", "upload", "leave", "read"))
    match way:
        case "form":
            answer = client.post("/v1/predict", files={"image": content}, params={"version": source.choice("12")})
        case "json":
            answer = client.post("/v1/predict", json={"images": [text, text[:50]]})
        case "protocol":
            tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
            answer = client.post("/v2/models/colours/infer", json={"inputs": [tensor]})
        case "mlflow":
            answer = client.post("/invocations", json={"inputs": [text]})
        case "broken":
            answer = client.post("/v1/predict", files={"image": content[: len(content) // 2]})
        case "unknown":
            answer = client.post("/v1/predict", files={"image": content}, params={"version": "9"})
        case "page":
            call = {"data": [{"url": f"data:image/png;base64,{text}"}, "champion"]}
            event = client.post("/gradio_api/call/predict", json=call).json()["event_id"]
            answer = client.get(f"/gradio_api/call/predict/{event}")
        case "upload":
            answer = client.post("/gradio_api/upload", files={"files": make_image(size=(8, 8))})
        case "leave":
            address = urlsplit(str(client.base_url))
            with contextlib.suppress(OSError), socket.create_connection((address.hostname, address.port), 10) as left:
                left.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\nabc")
            return way
        case _:
            answer = client.get(source.choice(("/", "/health/ready", "/metrics", "/v1/monitor", "/config")))
    return f"{way} {answer.status_code}"


def measure(process: psutil.Process, folder: Path) -> tuple[float, int, float, float]:
    """Memory in MB and open files of a server and its children, MB of the files in a folder, memory of the children."""
    memory, files, children = process.memory_info().rss, process.num_fds(), 0
    for one in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            children, files = children + one.memory_info().rss, files + one.num_fds()
    on_disk = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            on_disk += path.stat().st_size
    return (memory + children) / 1e6, files, on_disk / 1e6, children / 1e6


def soak(url: str, process: psutil.Process, folder: Path) -> tuple[Counter[str], np.ndarray]:
    """What came of every request, and rows of minutes, memory, files, disk and memory of children."""
    outcomes, rows, end = Counter[str](), [], time.monotonic() + SECONDS

    def client(seed: int) -> None:
        source = random.Random(seed)
        while time.monotonic() < end:
            with httpx.Client(base_url=url, trust_env=False, timeout=30) as opened:  # a new visitor
                for _ in range(20):
                    outcomes[ask(opened, source)] += 1
                    time.sleep(0.02)

    with ThreadPoolExecutor(3) as clients:
        running = [clients.submit(client, seed) for seed in range(3)]
        began = time.monotonic()
        while time.monotonic() < end:
            time.sleep(SECONDS / 120)
            rows.append(((time.monotonic() - began) / 60, *measure(process, folder)))
        for one in running:
            one.result()
    return outcomes, np.array(rows)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_ten_minutes_of_requests_leave_memory_and_files_as_they_are(tmp_path: Path, record_property: Any) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(temporary),
        "VITCIFAR_CACHE": str(tmp_path / "cache"),
    }
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", SERVER], env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            outcomes, rows = soak(url, psutil.Process(process.pid), tmp_path)
        finally:
            process.terminate()
        assert process.wait(30) == 0
    warm = rows[len(rows) // 4 :]  # by then every thread, connection and version is there
    slope = float(np.polyfit(warm[:, 0], warm[:, 1], 1)[0])
    print(
        f"{outcomes.total():,} requests in {SECONDS:g} s: {dict(sorted(outcomes.items()))}\n"
        f"memory of every tenth {[round(one) for one in rows[::12, 1]]} MB, of it the decoders "
        f"{[round(one) for one in rows[::12, 4]]} MB, slope {slope:.2f} MB a minute; open files {warm[0, 2]:.0f} to "
        f"{warm[-1, 2]:.0f}, at most {rows[:, 2].max():.0f}; on disk {warm[0, 3]:.1f} to {warm[-1, 3]:.1f} MB; log "
        f"{(tmp_path / 'log').stat().st_size} bytes"
    )
    record_property("requests served", sum(count for name, count in outcomes.items() if name.endswith(" 200")))
    record_property("bad inputs refused", sum(count for name, count in outcomes.items() if " 4" in name))
    assert not [outcome for outcome in outcomes if " 5" in outcome and not outcome.endswith(" 503")]
    assert all(outcomes[f"{way} 200"] for way in ("form", "json", "protocol", "mlflow", "page", "upload", "read"))
    assert slope < MAX_SLOPE
    assert warm[:, 2].max() - warm[0, 2] <= MAX_MORE_FILES
    assert warm[-1, 3] - warm[0, 3] < 10, "uploads are small here, and kept for an hour"
    assert not list(temporary.glob("vitcifar-page-*"))
