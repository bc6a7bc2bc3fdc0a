"""`serving.py --only score`: a table of many images."""

import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving_releases import MODELS
from serving_support import CORES, bare, image_file, onnx_file, verdict

from vitcifar.data.image import read_image

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
