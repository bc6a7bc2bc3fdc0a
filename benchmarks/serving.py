"""The server and batch scoring against a bare onnxruntime loop and MLflow's own server, with random weights.

    python benchmarks/serving.py
    python benchmarks/serving.py --only changes --seconds 60

Both sides of a part run in one run, in turns; each part ends with its verdicts. The releases (vit_tiny, ViT-B/16 float
and int8) are made once in `--folder`, in two minutes. Nothing else may use the machine meanwhile.
"""

import argparse
import base64
import importlib.metadata
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image
from serving_changes import changes
from serving_releases import CLIENTS, MODELS, make_releases
from serving_score import score
from serving_support import (
    CORES,
    TURNS,
    Client,
    bare,
    durations,
    free_port,
    image_file,
    onnx_file,
    our_server,
    process,
    rate,
    verdict,
)

from vitcifar import tracking
from vitcifar.data.image import read_image
from vitcifar.evaluation.monitoring import two_sample_test
from vitcifar.inference.machine import this_machine
from vitcifar.registry.registry import Registry
from vitcifar.release.latency import time_in_turns
from vitcifar.serving.loaded_model import open_version
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.monitor import REFRESH_SECONDS


def latency(folder: Path, seconds: float) -> None:
    """One REST client against the bare loop on decoded pixels, p50; and against one that decodes, as a program must.

    Inference may vary by more than REST adds: what a request takes besides, by the server's clock, is printed too.
    """
    for model, side, kind in (("tiny", 32, "PNG"), ("int8", 32, "PNG"), ("int8", 224, "JPEG")):
        file = image_file(side, kind=kind)
        image, infer, besides = read_image(file), bare(onnx_file(model), CORES), list[float]()
        with our_server(folder, model, "--page", "off") as (url, _, _):
            client = Client(url, "/v1/predict", f"image/{kind.lower()}", file)

            def ask(client: Client = client, besides: list[float] = besides) -> np.ndarray:
                start = time.perf_counter()
                _, body = client.ask()
                taken = 1e3 * (time.perf_counter() - start)
                besides.append(taken - json.loads(body)["predictions"][0]["timing"]["inference_ms"])
                return np.array(taken)

            sides = {
                "bare": lambda: infer(image),  # noqa: B023
                "decoding": lambda: infer(np.array(Image.open(io.BytesIO(file)))),  # noqa: B023
                "REST": ask,
            }
            times = time_in_turns(sides, num_runs=120 if model == "int8" else 400)
        p50 = {name: float(np.percentile(values, 50)) for name, values in times.items()}
        print(
            f"{MODELS[model].name}, {kind} of {side} x {side}, {CORES} threads, p50: bare loop {p50['bare']:.2f} ms, "
            f"one that decodes with Pillow {p50['decoding']:.2f} ms, REST {p50['REST']:.2f} ms; of a request all but "
            f"inference {np.median(besides):.2f} ms"
        )
        added = p50["REST"] - p50["bare"]
        verdict("REST adds", added, "at most 2 ms", added <= 2, " ms")


def throughput(folder: Path, seconds: float) -> None:
    """16 REST clients against the bare loop, ViT-B/16 int8."""
    file = image_file(MODELS["int8"].side)
    image, path = read_image(file), onnx_file("int8")
    together, single = bare(path, CORES), bare(path, 1)
    rates: dict[str, list[float]] = {"one after another": [], "one thread each": [], "REST": []}
    with our_server(folder, "int8", "--page", "off") as (url, _, _):
        for _ in range(TURNS):
            rates["one after another"].append(rate([lambda: together(image)], seconds / 6))
            time.sleep(0.2)  # its threads still spin
            rates["one thread each"].append(rate([lambda: single(image)] * CORES, seconds / 6))
            # New connections: the server closes one that sends no request for 10 s.
            clients = [Client(url, "/v1/predict", "image/jpeg", file).ask for _ in range(CLIENTS)]
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
