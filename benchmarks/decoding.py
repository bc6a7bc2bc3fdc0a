"""What decoding in a child process costs an image: p50 in this process, and in the child with the way there and back.

    python benchmarks/decoding.py

AMD EPYC, 2 cores that others used too, Pillow 12.3, two runs: 32 x 32 PNG 0.15 to 0.17 ms here and 0.27 to 0.38 in the
child; 900 x 700 JPEG 12.5 to 13.3 and 7.1; 4000 x 3000 JPEG 94 to 123 and 89 to 100. The child, which keeps the memory
of small images, is faster than a process that gives it back.
"""

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from vitcifar.data.image import read_image
from vitcifar.serving.decoder import Decoder

CASES = (("PNG", 32, 32, 200), ("JPEG", 900, 700, 200), ("JPEG", 4000, 3000, 40))


def milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    decoder, rng = Decoder(), np.random.default_rng(0)
    for kind, width, height, repeats in CASES:
        blobs = Image.fromarray(rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8))
        buffer = io.BytesIO()
        blobs.resize((width, height)).save(buffer, kind)
        content = buffer.getvalue()
        decoder.decode(content, "warm", 60)
        here, child = [], []
        for _ in range(repeats):
            here.append(milliseconds(lambda content=content: read_image(content, "a")))
            child.append(milliseconds(lambda content=content: decoder.decode(content, "a", 60)))
        before, after = statistics.median(here), statistics.median(child)
        print(f"{width} x {height} {kind}: {before:.2f} ms here, {after:.2f} ms in the child, {after - before:+.2f} ms")
    decoder.stop()


if __name__ == "__main__":
    main()
