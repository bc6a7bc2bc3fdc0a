"""Full fine-tuning of ViT-B/16 at 224 on a GPU in bf16: images per second, and the share of what the GPU can do.

    python benchmarks/gpu.py

The share is of the rate measured, in the same run, for one large bf16 matrix product. The operations of a step are
three times those of its forward pass (forward, and backward to inputs and to weights), as usually counted. Without
CUDA it says so and ends. The last line is the share, as a ratio.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.model.network import Classifier, build_network
from vitcifar.training.loop import fit


def matrix_rate(size: int = 8192, repeats: int = 50) -> float:
    """Operations per second of a bf16 matrix product."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(10):
        left @ right
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        left @ right
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - start)


def forward_operations(network: Classifier) -> float:
    """Operations of the matrix products of one image's forward pass; a multiplication and an addition are two."""
    backbone = network.backbone
    tokens, width, mlp = backbone.seq_length, backbone.hidden_dim, backbone.mlp_dim
    patches = 2 * (tokens - 1) * width * 3 * backbone.patch_size**2
    block = 2 * tokens * width * (4 * width + 2 * mlp) + 4 * tokens**2 * width
    return patches + len(network.blocks) * block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--compile", choices=("off", "on"), default="on")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no GPU can be used here")
        return
    number = options.batch_size * options.steps
    images = np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    names, ids = tuple("abcdefghij"), tuple(map(str, range(number)))
    train = ImageDataset(images=images, labels=np.arange(number) % 10, class_names=names, ids=ids)
    config = TrainConfig(
        weights="none",
        train_layers="all",
        batch_size=options.batch_size,
        epochs=1,
        precision="bf16",
        compile=options.compile,
        device="cuda",
    )
    network = build_network(config, names)
    times: dict[int, float] = {}

    def log(step: int, metrics: Mapping[str, float]) -> None:
        times.setdefault(step, time.perf_counter())  # the loss was read, so the GPU is done with the step before

    with tempfile.TemporaryDirectory() as folder:
        fit(network, train, train.subset(range(10)), config, log=log, folder=Path(folder))
    first = options.steps // 3  # compiling and warming up
    rate = (options.steps - first) * options.batch_size / (times[options.steps] - times[first])
    share = 3 * forward_operations(network) * rate / matrix_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {options.batch_size}")
    print(f"{rate:,.0f} images a second, peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    print(f"ratio {share:.2f}")


if __name__ == "__main__":
    main()
