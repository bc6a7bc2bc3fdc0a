"""Token merging (Bolya et al. 2023, "Token merging: your ViT but faster"): every block but the last merges its most
similar pairs of tokens, so that later blocks compute fewer tokens. The schedule "halving" is not theirs: it computes
fewer tokens at the same change of the logits than a constant number or their decreasing one (benchmarks/README.md).

It is defined twice: here, and by hand in release/token_merging_graph.py.
Letters in the shapes: B images, T tokens (the class token first), D hidden size, h heads, r merged pairs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def token_counts(num_tokens: int, token_merging: int, num_blocks: int, schedule: str = "constant") -> list[int]:
    """Tokens that enter each of `num_blocks` blocks, and at the end those that leave the last one.

    Every block but the last merges `token_merging` pairs; with the schedule "halving" each merges half of those that
    are left of their sum. None merges more than every second token, or the class token.
    """
    counts, left = [num_tokens], token_merging * (num_blocks - 1)
    for _ in range(num_blocks - 1):
        wanted = (left + 1) // 2 if schedule == "halving" else token_merging
        merged = min(wanted, (counts[-1] - 1) // 2)
        left -= merged
        counts.append(counts[-1] - merged)
    return [*counts, counts[-1]]  # the last block merges none: the head reads its class token, which would not change


def run_blocks(blocks: Sequence[nn.Module], tokens: Tensor, counts: Sequence[int]) -> Tensor:
    """Run transformer blocks that merge tokens: (B, T, D + 1) -> (B, T', D + 1).

    The last column is the size of each token: the number of patches that it stands for. `counts` are the tokens that
    enter each block, and those that leave the last one.
    """
    x, sizes = tokens[..., :-1], tokens[..., -1:]
    for index, block in enumerate(blocks):
        x, keys = _attend(block, x, sizes)
        x, sizes = merge(x, sizes, keys, counts[index] - counts[index + 1])
        x = x + block.get_submodule("mlp")(block.get_submodule("ln_2")(x))
    return torch.cat([x, sizes.to(x.dtype)], dim=2)


def merge(tokens: Tensor, sizes: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge the `count` most similar pairs: tokens (B, T, D), sizes (B, T, 1), keys (B, T, d) -> both with T - count.

    Bipartite soft matching: tokens at even positions look for their most similar token, by the cosine of their keys,
    at odd positions. A merged token is the mean of its patches. The matching of an image depends on no other image.
    """
    if not count:
        return tokens, sizes
    keys = functional.normalize(keys.float(), dim=-1)
    best, partner = (keys[:, 2::2] @ keys[:, 1::2].transpose(1, 2)).max(dim=-1)  # both (B, T/2), without class token
    order = best.sort(dim=-1, descending=True).indices  # of equals the first comes first, on the CPU and in ONNX
    merged, kept = order[:, :count], order[:, count:].sort(dim=-1).values  # kept tokens stay in their order
    kept = functional.pad(kept + 1, (1, 0))  # 0 is the class token
    even, odd, odd_sizes = tokens[:, ::2], tokens[:, 1::2], sizes[:, 1::2]
    source_sizes = _take(sizes[:, ::2], merged + 1)  # (B, r, 1)
    target = partner.gather(1, merged)  # (B, r)
    positions = torch.arange(odd.shape[1], device=odd.device)
    chosen = (target[:, None] == positions[:, None]).to(tokens.dtype)  # (B, T/2, r)
    new_sizes = odd_sizes + chosen @ source_sizes
    weights = chosen * source_sizes.transpose(1, 2) / new_sizes  # (B, T/2, r)
    new_odd = odd * (odd_sizes / new_sizes) + weights @ _take(even, merged + 1)
    return torch.cat([_take(even, kept), new_odd], dim=1), torch.cat([_take(sizes[:, ::2], kept), new_sizes], dim=1)


def _take(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of each image: values (B, T, D), indices (B, n) -> (B, n, D)."""
    return values.gather(1, indices[:, :, None].expand(-1, -1, values.shape[2]))


def _attend(block: nn.Module, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Self-attention of a block with its residual connection, and the mean of its keys over the heads (B, T, D / h).

    Attention is proportional: a token counts as often as it has patches, by the logarithm of its size on the scores.
    """
    attention: Any = block.get_submodule("self_attention")
    heads, batch, num_tokens = attention.num_heads, x.shape[0], x.shape[1]
    projected = functional.linear(block.get_submodule("ln_1")(x), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.view(batch, num_tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (B, h, T, D / h) each
    bias = sizes.to(query.dtype).log()[:, None].transpose(2, 3)  # (B, 1, 1, T)
    bias = bias.expand(-1, -1, num_tokens, -1)
    output = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    output = attention.out_proj(output.transpose(1, 2).flatten(2))  # (B, T, D)
    return x + block.get_submodule("dropout")(output), key.mean(dim=1)
