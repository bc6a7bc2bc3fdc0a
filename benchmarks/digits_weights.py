"""Weights of a ViT-B/16 at 224 that tells digits apart, for `serving_latency.py --weights`, without a download.

    python benchmarks/digits_weights.py digits.pt

A network whose head alone is trained on random features has small margins, and agreement with it says little. Two
blocks are trained at several image sizes; then each becomes six, with a sixth of its output each (after Gong et al.
2019, "Efficient training of BERT by progressively stacking"), and all twelve are trained on half of the images. The
head is fitted by logistic regression before and after each step. Test images of `serving_latency.py` are not used.
"""

import argparse
import math
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.data.splits import read_splits
from vitcifar.model import vit
from vitcifar.model.network import Preprocess

GRID, WIDTH = 14, 768  # patches in a row at 224, and the hidden size
SIZES = (96, 96, 96, 96, 128, 160, 224)  # each batch has one of them: small ones take less time
BATCH_SIZE, WARM_UP = 24, 20
Part = tuple[int, int, int]  # the first image, the end, and their size


def new_network(num_blocks: int) -> vit.VisionTransformer:
    return vit.VisionTransformer(224, 16, num_blocks, 12, WIDTH, 4 * WIDTH, num_classes=10)


def positions() -> Tensor:
    """Sines and cosines of row and column, as in the masked autoencoders of He et al. 2022, (196, 768)."""
    frequencies = 2 / 10_000 ** (torch.arange(WIDTH // 4) / (WIDTH / 4))
    rows, columns = torch.meshgrid(torch.arange(GRID).float(), torch.arange(GRID).float(), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (columns, rows)]
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], 1)


def forward(network: vit.VisionTransformer, images: Tensor, size: int) -> Tensor:
    """uint8 images (B, H, W, 3) -> logits (B, 10) at another image size: the positions are interpolated."""
    tokens = network.conv_proj(Preprocess(size)(images)).flatten(2).transpose(1, 2)
    embedding, side = network.encoder.pos_embedding, size // 16
    grid = embedding[:, 1:].transpose(1, 2).reshape(1, WIDTH, GRID, GRID)
    grid = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=True)
    first = (network.class_token + embedding[:, :1]).expand(len(tokens), -1, -1)
    tokens = torch.cat([first, tokens + grid.flatten(2).transpose(1, 2)], 1)
    return network.heads(network.encoder.ln(network.encoder.layers(tokens))[:, 0])


@torch.no_grad()
def fit_head(
    network: vit.VisionTransformer, images: Tensor, labels: np.ndarray, parts: Sequence[Part], c: float
) -> None:
    """Logistic regression on the standardised embeddings of some images at some sizes."""
    head, network.heads = network.heads, nn.Identity()
    features = [
        forward(network.eval(), batch, size).numpy()
        for first, end, size in parts
        for batch in images[first:end].split(50)
    ]
    network.heads = head
    rows, targets = np.concatenate(features), np.concatenate([labels[first:end] for first, end, _ in parts])
    mean, deviation = rows.mean(0), rows.std(0) + 1e-4
    fitted = LogisticRegression(C=c, max_iter=400).fit((rows - mean) / deviation, targets)
    weight = fitted.coef_ / deviation
    head.head.weight.copy_(torch.tensor(weight))
    head.head.bias.copy_(torch.tensor(fitted.intercept_ - weight @ mean))


def shift(images: Tensor) -> Tensor:
    """Each image moved by up to two pixels, its border repeated."""
    padded = functional.pad(images.permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    side, offsets = images.shape[1], torch.randint(0, 5, (len(images), 2))
    moved = [one[:, y : y + side, x : x + side] for one, (y, x) in zip(padded, offsets, strict=True)]
    return torch.stack(moved).permute(0, 2, 3, 1)


def train(network: vit.VisionTransformer, images: Tensor, labels: Tensor, epochs: int, learning_rate: float) -> None:
    """AdamW with warm-up and cosine decay, every layer."""
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(images)).split(BATCH_SIZE)]
    for step, rows in enumerate(batches):
        decay = 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        optimizer.param_groups[0]["lr"] = learning_rate * decay * min(1, (step + 1) / WARM_UP)
        size = SIZES[int(torch.randint(len(SIZES), ()))]
        loss = functional.cross_entropy(forward(network, shift(images[rows]), size), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 15 == 0:
            print(f"step {step} of {len(batches)}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def stack(small: vit.VisionTransformer) -> vit.VisionTransformer:
    """Twelve blocks: each of the two stands for six, with a sixth of its output."""
    network, blocks = new_network(12), [*small.encoder.layers]
    state = {key: value for key, value in small.state_dict().items() if ".encoder_layer_" not in key}
    network.load_state_dict(state, strict=False)
    for index, block in enumerate(network.encoder.layers):
        block.load_state_dict(blocks[index // 6].state_dict())
        for last in (block.self_attention.out_proj, block.mlp[3]):
            last.weight.div_(6)
            last.bias.div_(6)
    return network


def tensors(dataset: ImageDataset) -> tuple[Tensor, np.ndarray]:
    return torch.stack([torch.as_tensor(image) for image in dataset.images]), np.asarray(dataset.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="where the state dict goes")
    options = parser.parse_args()
    torch.manual_seed(0)
    splits = read_splits(TrainConfig(data="digits", train_per_class=0, validation_per_class=20, test_per_class=20))
    images, labels = tensors(splits.train)
    targets = torch.tensor(labels)
    network = new_network(2)
    with torch.no_grad():
        network.encoder.pos_embedding[0, 1:] = positions()
    fit_head(network, images, labels, [(0, 600, 96), (600, 900, 128)], 5e-4)
    train(network, images, targets, epochs=3, learning_rate=1e-4)
    fit_head(network, images, labels, [(0, len(images), 96), (0, 600, 128), (600, 800, 224)], 0.1)
    network = stack(network)
    fit_head(network, images, labels, [(0, 400, 96), (400, 500, 224)], 0.1)
    train(network, images[:720], targets[:720], epochs=1, learning_rate=2e-5)
    parts = [(0, 600, 96), (600, 900, 128), (900, 1000, 160), (1000, len(images), 224)]
    fit_head(network, images, labels, parts, 0.1)
    torch.save(network.state_dict(), options.file)
    with torch.inference_mode():
        tested, known = tensors(splits.validation)
        found = torch.cat([forward(network.eval(), batch, 224) for batch in tested.split(20)]).argmax(1).numpy()
    print(f"right on {(found == known).mean():.1%} of {len(known)} validation images at 224")


if __name__ == "__main__":
    main()
