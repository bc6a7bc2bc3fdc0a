"""The server and batch scoring against a bare onnxruntime loop and MLflow's own server, with random weights.

    python benchmarks/serving.py
    python benchmarks/serving.py --only changes --seconds 60

Both sides of a part run in one run, in turns; each part ends with its verdicts. The releases (vit_tiny, ViT-B/16 float
and int8) are made once in `--folder`, in two minutes. Nothing else may use the machine meanwhile.
"""

import argparse
import base64
import contextlib
import importlib.metadata
import io
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
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
from serving_releases import CLIENTS, MODELS, make_releases

from vitcifar import tracking
from vitcifar.data.image import read_image
from vitcifar.evaluation.monitoring import two_sample_test
from vitcifar.inference.machine import available_cores, this_machine
from vitcifar.registry.registry import Registry
from vitcifar.release.latency import time_in_turns
from vitcifar.release.manifest import INT8_FILE, ONNX_FILE
from vitcifar.serving.loaded_model import open_version
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.monitor import REFRESH_SECONDS

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


def latency(folder: Path, seconds: float) -> None:
    """One REST client against the bare loop, p50."""
    for model in ("tiny", "int8"):
        file = image_file(MODELS[model].side)
        image, infer = read_image(file), bare(onnx_file(model), CORES)
        with our_server(folder, model, "--page", "off") as (url, _, _):
            client = Client(url, "/v1/predict", "image/jpeg", file)
            times = time_in_turns(
                {"bare": lambda: infer(image), "REST": lambda: np.array(client.ask()[0])},  # noqa: B023
                num_runs=40 if model == "int8" else 400,
            )
        p50 = {name: float(np.percentile(values, 50)) for name, values in times.items()}
        print(f"{MODELS[model].name}, p50: bare loop {p50['bare']:.2f} ms, REST {p50['REST']:.2f} ms, {CORES} threads")
        added = p50["REST"] - p50["bare"]
        verdict("REST adds", added, "at most 2 ms", added <= 2, " ms")


def throughput(folder: Path, seconds: float) -> None:
    """16 REST clients against the bare loop, ViT-B/16 int8."""
    file = image_file(MODELS["int8"].side)
    image, path = read_image(file), onnx_file("int8")
    together, single = bare(path, CORES), bare(path, 1)
    rates: dict[str, list[float]] = {"one after another": [], "one thread each": [], "REST": []}
    with our_server(folder, "int8", "--page", "off") as (url, _, _):
        clients = [Client(url, "/v1/predict", "image/jpeg", file).ask for _ in range(CLIENTS)]
        for _ in range(TURNS):
            rates["one after another"].append(rate([lambda: together(image)], seconds / 6))
            time.sleep(0.2)  # its threads still spin
            rates["one thread each"].append(rate([lambda: single(image)] * CORES, seconds / 6))
            rates["REST"].append(rate(clients, seconds / 6))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("ViT-B/16 int8, images/s:", ", ".join(f"{name} {value:.2f}" for name, value in medians.items()))
    ratio = medians["REST"] / max(medians["one after another"], medians["one thread each"])
    verdict("ratio, REST / the faster bare loop", ratio, "at least 0.90", ratio >= 0.9)


def against_mlflow(folder: Path, seconds: float) -> None:
    """16 clients of our server, and of `mlflow models serve` on the same release of vit_tiny."""
    file, port = image_file(MODELS["tiny"].side, kind="PNG"), free_port()
    body = json.dumps({"inputs": [base64.b64encode(file).decode()]}).encode()
    url = f"http://127.0.0.1:{port}"
    arguments = ["-m", "mlflow", "models", "serve", "-m", "models:/tiny/1", "--env-manager", "local", "-p", str(port)]
    rates: dict[str, list[float]] = {"ours": [], "mlflow models serve": []}
    with (
        our_server(folder, "tiny", "--page", "off") as (ours, _, _),
        process(arguments, f"{url}/ping", folder / "mlflow.log"),
    ):
        sides = {
            "ours": [Client(ours, "/v1/predict", "image/png", file).ask for _ in range(CLIENTS)],
            "mlflow models serve": [Client(url, "/invocations", "application/json", body).ask for _ in range(CLIENTS)],
        }
        for _, (name, clients) in itertools.product(range(TURNS), sides.items()):
            rates[name].append(rate(clients, min(seconds / 6, 4)))  # MLflow's server closes what waits for 5 s
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("vit_tiny, requests/s:", ", ".join(f"{name} {value:.1f}" for name, value in medians.items()))
    ratio = medians["ours"] / medians["mlflow models serve"]
    verdict("ratio, ours / mlflow models serve", ratio, "at least 2", ratio >= 2)


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


def score(folder: Path, seconds: float) -> None:
    """10,000 images with `vitcifar score` against a loop that decodes and runs them, memory, and a kill half-way."""
    images = folder / "images"
    if not images.exists():
        new = folder / "images.partial"
        shutil.rmtree(new, ignore_errors=True)
        for part, count in (("small", 1_000), ("large", 9_000)):
            (new / part).mkdir(parents=True)
            for number in range(count):
                (new / part / f"{number:05}.png").write_bytes(image_file(MODELS["tiny"].side, number, "PNG"))
        new.rename(images)
    paths, infer = sorted(images.rglob("*.png")), bare(onnx_file("tiny"), 1)
    start = time.perf_counter()
    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(lambda path: infer(read_image(path)), paths))
    loop = len(paths) / (time.perf_counter() - start)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        table, resumed, small = (Path(out) / f"{name}.parquet" for name in ("table", "resumed", "small"))
        peak_small, _ = score_in_process(folder, images / "small", small)
        peak, ours = score_in_process(folder, images, table)
        score_in_process(folder, images, resumed, kill_after=len(paths) // 2)
        score_in_process(folder, images, resumed)
        same = table.read_bytes() == resumed.read_bytes()
    print(f"vit_tiny, {len(paths):,} images: bare loop {loop:.0f} images/s, score {ours:.0f} images/s")
    verdict("ratio, score / bare loop", ours / loop, "at least 0.90", ours / loop >= 0.9)
    print(f"  peak memory {peak_small:.0f} MB at 1,000 images, {peak:.0f} MB at {len(paths):,}")
    verdict("ratio of the peaks", peak / peak_small, "at most 1.10", peak <= 1.1 * peak_small)
    verdict("tables that differ after a kill half-way", int(not same), "0", same)


SCORE = """
import resource, sys, time
from pathlib import Path
from vitcifar import tracking
from vitcifar.registry.registry import Registry
from vitcifar.serving.loaded_model import open_version
from vitcifar.serving.score import score
tracking.connect(sys.argv[1])
model = open_version(Registry("tiny"), 1, num_threads=1)
start = time.perf_counter()
done = score(model, [sys.argv[2]], Path(sys.argv[3]))
seconds = time.perf_counter() - start
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, done.num_rows / seconds)
"""


def score_in_process(folder: Path, images: Path, out: Path, kill_after: int = 0) -> tuple[float, float]:
    """Peak memory in MB and images per second of a scoring; or one that is killed after some rows."""
    command = [sys.executable, "-c", SCORE, f"sqlite:///{folder}/mlflow.db", str(images), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        journal = out.with_name(f"{out.name}.partial")
        while kill_after and (not journal.exists() or journal.read_bytes().count(b"\n") < kill_after):
            time.sleep(0.05)
        if kill_after:
            child.kill()
            return 0.0, 0.0
        peak, speed = child.communicate()[0].split()
    return float(peak), float(speed)


def start(folder: Path, seconds: float) -> None:
    """From the start of the command to ready, and the memory of ViT-B/16 float after predictions of 16 clients."""
    for model, page, limit in (("tiny", "off", 3), ("tiny", "on", 4), ("float", "off", 8)):
        times = []
        for _ in range(TURNS):
            with our_server(folder, model, "--page", page) as (url, running, taken):
                times.append(taken)
                if model == "float" and len(times) == TURNS:
                    file = image_file(MODELS[model].side)
                    rate([Client(url, "/v1/predict", "image/jpeg", file).ask for _ in range(CLIENTS)], 10)
                    family = [running, *running.children(recursive=True)]
                    memory = sum(one.memory_full_info().pss for one in family) / 2**20
                    print(f"{MODELS[model].name}: {len(family)} processes")
                    verdict("memory after 16 clients", memory, "at most 800 MB", memory <= 800, " MB")
        least = min(times)
        print(f"{MODELS[model].name}, page {page}: ready after {', '.join(f'{value:.1f}' for value in times)} s")
        verdict("the fastest start", least, f"at most {limit} s", least <= limit, " s")


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


def shadow(folder: Path, seconds: float) -> None:
    """What a challenger in the shadow costs the answers: p50 of 1, 4 and 16 clients, without and with it."""
    for model in ("tiny", "int8"):
        file = image_file(MODELS[model].side)
        with (
            our_server(folder, model, "--page", "off") as (plain, _, _),
            our_server(folder, model, "--page", "off", "--shadow", "2") as (shadowed, _, _),
        ):
            urls = {"without": plain, "with": shadowed}
            durations([Client(shadowed, "/v1/predict", "image/jpeg", file).ask], 3)  # its process has started
            for count in (1, 4, CLIENTS):
                times: dict[str, list[float]] = {name: [] for name in urls}
                before = shadow_predictions(shadowed)
                for _, (name, url) in itertools.product(range(2 * TURNS), urls.items()):
                    clients = [Client(url, "/v1/predict", "image/jpeg", file).ask for _ in range(count)]
                    times[name] += durations(clients, seconds / 12)
                shares = {q: {name: float(np.percentile(one, q)) for name, one in times.items()} for q in (50, 95)}
                predicted = (shadow_predictions(shadowed) - before) / len(times["with"])
                print(
                    f"{MODELS[model].name}, {count} clients, without and with: "
                    + "; ".join(f"p{q} {one['without']:.2f} and {one['with']:.2f} ms" for q, one in shares.items())
                    + f"; {predicted:.1%} of the images predicted by both"
                )
                ratio = shares[50]["with"] / shares[50]["without"]
                verdict("ratio of p50, with / without", ratio, "at most 1.10", ratio <= 1.1)


def shadow_predictions(url: str) -> int:
    """How many images version 2 has predicted."""
    time.sleep(REFRESH_SECONDS + 1)
    found = json.load(urlopen(f"{url}/v1/monitor", timeout=30))["versions"]
    return next((one["num_predictions"] for one in found if one["version"] == 2), 0)


def monitor(folder: Path, seconds: float) -> None:
    """What the monitor adds to a prediction, and how long a test of drift takes."""
    for model in ("tiny", "int8"):
        file, pool = image_file(MODELS[model].side), ModelPool(Registry(model), "champion")
        plain = open_version(Registry(model), "champion", concurrent=True).classifier
        sides = {"without": plain, "with": pool.state.current.classifier}
        times = time_in_turns(
            {name: lambda one=one: np.array(one.predict(file).probability) for name, one in sides.items()},  # noqa: B023
            num_runs=40 if model == "int8" else 400,
        )
        p50 = {name: float(np.percentile(values, 50)) for name, values in times.items()}
        image, prediction = read_image(file), plain.predict(file)
        window = pool.monitor.window(pool.state.current.manifest, "measured")
        start = time.perf_counter()
        for _ in range(1000):
            window.add(image, prediction, np.zeros(768, np.float32))
        added = time.perf_counter() - start  # seconds for 1,000 = milliseconds for one
        print(
            f"{MODELS[model].name}, p50 of a prediction {p50['without']:.3f} ms without, {p50['with']:.3f} with the "
            f"monitor; to remember one takes {added:.4f} ms"
        )
        verdict(
            "ratio, to remember / to predict", added / p50["without"], "at most 0.05", added <= 0.05 * p50["without"]
        )
    rows = np.random.default_rng(0).normal(size=(1000, 768))
    start = time.perf_counter()
    two_sample_test(rows[:500], rows[500:])
    print(f"a test of drift, 500 embeddings of ViT-B/16 against 500: {1e3 * (time.perf_counter() - start):.0f} ms")


PARTS = {
    "latency": latency,
    "throughput": throughput,
    "mlflow": against_mlflow,
    "changes": changes,
    "score": score,
    "start": start,
    "shadow": shadow,
    "monitor": monitor,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="all", help=f"parts, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=60, help="how long clients ask, in each part")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "vitcifar-benchmark")
    options = parser.parse_args()
    chosen = list(PARTS) if options.only == "all" else options.only.split(",")
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", VITCIFAR_CACHE=str(folder / "cache"), VITCIFAR_CACHE_KEEP="20")
    os.environ["MLFLOW_TRACKING_URI"] = tracking.connect(f"sqlite:///{folder}/mlflow.db")
    machine = this_machine()
    packages = ("onnxruntime", "mlflow", "uvicorn", "fastapi", "gradio", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{machine.processor}, {machine.num_cores} cores, {' '.join(machine.flags)}; {versions}")
    make_releases(folder)
    print(f"load of the machine before the first part: {os.getloadavg()[0]:.2f}")
    for name in chosen:
        print(f"\n{name}: {PARTS[name].__doc__}")
        PARTS[name](folder, options.seconds)


if __name__ == "__main__":
    main()
