"""`serving.py --only changes`: answers while the alias moves, a version is broken and the store goes away."""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from serving_releases import CLIENTS, MODELS
from serving_support import Client, free_port, image_file, our_server, process, verdict

from vitcifar.registry.registry import Registry
from vitcifar.serving.loaded_model import open_version


class Watched:
    """16 clients that compare every answer of a server with the offline prediction of the version that it names."""

    def __init__(self, registry: Registry, url: str) -> None:
        self.url = url
        self.files = [image_file(MODELS["tiny"].side, seed, "PNG") for seed in range(8)]
        models = {number: open_version(registry, number) for number in (1, 2)}
        self.expected = {
            number: [model.predict(file).probabilities for file in self.files] for number, model in models.items()
        }
        self.counts = dict.fromkeys(models, 0)
        self.wrong: list[Any] = []
        self.stop = threading.Event()

    def ask(self, index: int) -> None:
        """One client, until `stop`."""
        number = index % len(self.files)
        client = Client(self.url, "/v1/predict", "image/png", self.files[number])
        while not self.stop.is_set():
            status, body = client.ask()
            row = json.loads(body)["predictions"][0] if status == 200 else {"error": body}
            if status != 200 or row["probabilities"] != self.expected[row["version"]][number]:
                self.wrong.append(row)
            else:
                self.counts[row["version"]] += 1

    def wait(self, what: str, version: int, problem: str, limit: float) -> None:
        """Print after how many seconds the server says that it serves a version with such a problem."""
        start = time.perf_counter()
        while True:
            ready = json.load(urlopen(f"{self.url}/health/ready", timeout=30))
            if ready["version"] == version and problem in ready["problem"]:
                print(f"  {what} after {time.perf_counter() - start:.1f} s")
                return
            if time.perf_counter() - start > limit:
                raise SystemExit(f"expected version {version} and {problem!r}, got {ready}")
            time.sleep(0.05)


@contextlib.contextmanager
def artifacts_away(folder: Path) -> Iterator[None]:
    shutil.move(folder / "artifacts", folder / "away")
    try:
        yield
    finally:
        shutil.move(folder / "away", folder / "artifacts")


def changes(folder: Path, seconds: float) -> None:
    """16 clients through a promotion, a rollback, a broken version and a store that goes away."""
    registry, port = Registry("tiny"), free_port()
    uri, log = f"http://127.0.0.1:{port}", folder / "store.log"
    store = ["-m", "mlflow", "server", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    store += ["--workers", "1", "--allowed-hosts", f"127.0.0.1:{port}"]
    os.environ.update(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")

    def point(number: int) -> None:
        registry.client.set_registered_model_alias("tiny", "champion", str(number))

    point(1)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.ExitStack())
        server.enter_context(process(store, f"{uri}/health", log))
        url, _, _ = stack.enter_context(our_server(folder, "tiny", "--page", "off", "--tracking-uri", uri))
        threads, watched = stack.enter_context(ThreadPoolExecutor(CLIENTS)), Watched(registry, url)
        stack.callback(watched.stop.set)
        clients = [threads.submit(watched.ask, index) for index in range(CLIENTS)]
        for number, what, version, problem in (
            (2, "a promotion is followed", 2, ""),
            (1, "a rollback", 1, ""),
            (3, "a broken version is named", 1, "cannot be loaded"),
        ):
            time.sleep(seconds / 6)
            point(number)
            watched.wait(what, version, problem, 90)
        time.sleep(seconds / 6)
        server.close()
        with artifacts_away(folder):
            watched.wait("a store that is away", 1, "cannot be read", 90)
            time.sleep(seconds / 6)
        point(2)
        server.enter_context(process(store, f"{uri}/health", log))
        watched.wait("its return", 2, "", 120)
        time.sleep(seconds / 6)
        watched.stop.set()
        failed = [client.exception() for client in clients if client.exception()]
    point(1)
    one, two = watched.counts[1], watched.counts[2]
    print(f"{CLIENTS} clients: {one:,} answers of version 1, {two:,} of version 2, equal to the offline ones")
    num_wrong = len(watched.wrong) + len(failed)
    verdict("failed or different", num_wrong, "0", not num_wrong)
