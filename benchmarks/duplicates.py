"""Near-duplicates among 8,000 and 60,000 images, as `vitcifar data audit` searches them: time and memory.

    python benchmarks/duplicates.py

Thumbnails and embeddings of ViT-B/16 (768 values each) are noise, and 1 in 100 images is another with a little noise
added: all of these must be found, and no others. Every image is compared with every other, so 60,000 take 56 times the
products of 8,000; each number of images has a process of its own. The last line is what an image-to-image comparison
takes among 60,000 / among 8,000.
"""

import argparse
import subprocess
import sys
import time
import tracemalloc

import numpy as np

from vitcifar.evaluation.duplicates import concat_embeddings, nearest_duplicates
from vitcifar.inference.machine import this_machine

SIZES = (8_000, 60_000)


def search(num_images: int) -> None:
    """Print CPU and wall time, in seconds, and the bytes that the search adds at its peak, and of the embeddings."""
    random = np.random.default_rng(0)
    parts = [random.standard_normal((num_images, 768), dtype=np.float32) for _ in range(2)]
    copies = random.permutation(num_images)[: num_images // 50].reshape(2, -1)  # images, and what they are made from
    for rows in parts:
        rows[copies[0]] = rows[copies[1]] + 0.05 * random.standard_normal((copies.shape[1], 768), dtype=np.float32)
    embeddings = concat_embeddings(*parts)
    hashes, groups = [str(index) for index in range(num_images)], np.arange(num_images) % 3
    del parts, rows
    tracemalloc.start()
    cpu, start = time.process_time(), time.perf_counter()
    other, _ = nearest_duplicates(hashes, groups, embeddings)
    print(time.process_time() - cpu, time.perf_counter() - start, tracemalloc.get_traced_memory()[1], embeddings.nbytes)
    expected = np.full(num_images, -1)
    expected[copies[0]], expected[copies[1]] = copies[1], copies[0]
    assert (other == expected).all(), "other duplicates than those that were planted"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, default=0, help="search once among this many images")
    options = parser.parse_args()
    if options.only:
        search(options.only)
        return
    print(this_machine())
    cost = []
    for size in SIZES:
        command = [sys.executable, __file__, "--only", str(size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        cpu, wall, added, held = map(float, done.stdout.split())
        cost.append(cpu / size**2)
        memory = f"{added / 1e6:,.0f} MB in addition to the {held / 1e6:,.0f} of the embeddings"
        print(f"{size:>6,} images: {cpu:.1f} s of CPU time, {wall:.1f} s, {memory}", flush=True)
    print(f"ratio {cost[1] / cost[0]:.2f}")


if __name__ == "__main__":
    main()
