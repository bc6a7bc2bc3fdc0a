"""Time per image and memory at 1,000, 10,000 and 50,000 training images: neither should grow with their number.

    python benchmarks/scaling.py

vit_tiny, all layers, synthetic images of CIFAR-10's size, all in memory as uint8. Each size trains in a process
of its own, so that the peak is its own; the sizes take turns. The last line is the slowest time per image / the
fastest.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = (1_000, 10_000, 50_000)


def train_once(num_images: int, num_epochs: int) -> None:
    """Train and print milliseconds per image, and the memory in MB before the images and at the peak."""
    from vitcifar.data.dataset import ImageDataset
    from vitcifar.model.network import build_network
    from vitcifar.presets import resolve
    from vitcifar.training.loop import fit

    names = tuple("abcdefghij")
    config = resolve("digits", epochs=num_epochs, batch_size=100, device="cpu")
    network = build_network(config, names)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    random = np.random.default_rng(0)
    sets = [
        ImageDataset(
            images=random.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8),
            labels=np.arange(number) % 10,
            class_names=names,
            ids=tuple(map(str, range(number))),
        )
        for number in (num_images, 100)
    ]
    times = [0.0] * (num_epochs * num_images // config.batch_size + 1)

    def log(step: int, metrics: dict[str, float]) -> None:
        if "step/loss" in metrics:
            times[step] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        fit(network, *sets, config, log=log, folder=Path(folder))
    steps = num_images // config.batch_size  # of an epoch; what comes at its end costs the same at any size
    seconds = [later - earlier for earlier, later in itertools.pairwise(times)]
    inside = [taken for step, taken in enumerate(seconds) if step % steps]
    milliseconds = 1000 * statistics.mean(inside) / config.batch_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"milliseconds": milliseconds, "before": before, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", type=int, default=0, help="train once with this many images, and say how it went")
    options = parser.parse_args()
    if options.only:
        train_once(options.only, num_epochs=max(1, 5_000 // options.only))
        return
    from vitcifar.inference.machine import this_machine

    print(this_machine())
    results: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    for _ in range(options.turns):
        for size in SIZES:
            command = [sys.executable, __file__, "--only", str(size)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[size].append(json.loads(output.splitlines()[-1]))
    medians = {}
    for size, runs in results.items():
        medians[size] = statistics.median(run["milliseconds"] for run in runs)
        added = max(run["peak"] - run["before"] for run in runs)
        peak = max(run["peak"] for run in runs)
        print(f"{size:>6,} images: {medians[size]:6.3f} ms an image, peak {peak:,.0f} MB, {added:,.0f} MB of it added")
    print(f"ratio {max(medians.values()) / min(medians.values()):.3f}")


if __name__ == "__main__":
    main()
