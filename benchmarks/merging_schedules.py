"""Which blocks should merge tokens: how far each schedule moves the logits of a ViT-B/16 at 224, and what it leaves.

    python benchmarks/merging_schedules.py --weights digits.pt
    python benchmarks/merging_schedules.py --weights digits.pt --images FOLDER

Weights for digits (`digits_weights.py`) may be shown photos too: what is asked is how much the same network changes.
"decreasing" is the linear schedule of the authors of token merging (Bolya et al. 2023): from twice the number to none.
The last line is the share of tokens that "halving" computes, over that of "constant" with the same change of logits.
"""

import argparse
import itertools
from unittest.mock import PropertyMock, patch

import numpy as np

from vitcifar.config import TrainConfig
from vitcifar.data.splits import read_splits
from vitcifar.inference.machine import this_machine
from vitcifar.model.network import Classifier, build_network
from vitcifar.model.predict import predict_logits, without_merging
from vitcifar.model.token_merging import token_counts

COUNTS = (8, 10, 12, 14, 16)


def counts_of(schedule: str, count: int, num_tokens: int, num_blocks: int) -> list[int]:
    """Tokens that enter each block, and those that leave the last one."""
    if schedule != "decreasing":
        return token_counts(num_tokens, count, num_blocks, schedule)
    counts = [num_tokens]
    for above in reversed(range(num_blocks)):
        counts.append(counts[-1] - min(2 * count * above // (num_blocks - 1), (counts[-1] - 1) // 2))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="a state dict of a ViT-B/16 at 224")
    parser.add_argument("--images", default="digits", help="digits, or a folder with one folder per class")
    parser.add_argument("--per-class", type=int, default=10)
    options = parser.parse_args()
    print(this_machine())
    where = {"data": "digits"} if options.images == "digits" else {"data": "folder", "data_dir": options.images}
    images = read_splits(TrainConfig(**where, validation_per_class=options.per_class)).validation.images
    network = build_network(TrainConfig(weights=options.weights, token_merging=1), tuple("abcdefghij")).eval()
    tokens, blocks = network.backbone.seq_length, len(network.blocks)
    shares: dict[str, list[float]] = {}
    changes: dict[str, list[float]] = {}
    with without_merging(network):
        expected = predict_logits(network, images)
    for schedule, count in itertools.product(("constant", "decreasing", "halving"), COUNTS):
        counts = counts_of(schedule, count, tokens, blocks)
        with patch.object(Classifier, "token_counts", new_callable=PropertyMock, return_value=counts):
            found = predict_logits(network, images)
        shares.setdefault(schedule, []).append(sum(counts[:-1]) / tokens / blocks)
        changes.setdefault(schedule, []).append(float(np.abs(found - expected).mean()))
        same = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
        print(
            f"{schedule:>10} {count:>2}: {shares[schedule][-1]:.3f} of the tokens, logits change by "
            f"{changes[schedule][-1]:.3f}, {same:.1%} of {len(images)} predictions stay",
            flush=True,
        )
    for schedule in ("decreasing", "halving"):
        same_change = np.interp(changes[schedule], changes["constant"], shares["constant"], left=np.nan, right=np.nan)
        ratio = float(np.nanmean(np.array(shares[schedule]) / same_change))
        print(f"ratio {ratio:.2f}, tokens of {schedule} / of constant with the same change")


if __name__ == "__main__":
    main()
