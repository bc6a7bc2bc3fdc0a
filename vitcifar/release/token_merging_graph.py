"""Token merging node by node, for the ONNX graph of onnx_graph.py: the counterpart of model/token_merging.py.

Letters in the shapes: N images, T tokens (the class token first), D hidden size, h heads, r merged pairs.
"""

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

if TYPE_CHECKING:
    from vitcifar.release.onnx_graph import GraphBuilder

END = 2**31  # of a slice


def start_sizes(graph: "GraphBuilder", num_tokens: int) -> str:
    """The size of each token before the first merge, 1 each: (N, T, 1)."""
    number = graph.add("Shape", "image", start=0, end=1)
    shape = graph.add("Concat", number, graph.constant("sizes.shape", [num_tokens, 1], np.int64), axis=0)
    return graph.add("Expand", graph.constant("sizes.one", [1.0]), shape)


def attention_bias(graph: "GraphBuilder", sizes: str, num_queries: int) -> str:
    """Proportional attention: the logarithm of the sizes (N, T, 1), added to every score (N, 1, queries, T)."""
    row = graph.add("Unsqueeze", graph.add("Log", sizes), _integers(graph, 1))  # (N, 1, T, 1)
    row = graph.add("Transpose", row, perm=[0, 1, 3, 2])
    return graph.add("Expand", row, _integers(graph, 1, 1, num_queries, 1))


def merge(
    graph: "GraphBuilder", x: str, sizes: str, key: str, *, num_tokens: int, num_heads: int, count: int
) -> tuple[str, str]:
    """Merge the `count` most similar pairs: x and key (N, T, D), sizes (N, T, 1) -> x and sizes with T - count."""
    best, partner = _most_similar(graph, key, num_tokens, num_heads)
    num_even = (num_tokens - 1) // 2  # without the class token
    order = [f"{x}.best", f"{x}.order"]
    order = graph.add_node("TopK", [best, _integers(graph, num_even)], order, axis=1)
    merged = _slice(graph, order[1], 0, count)  # (N, r), of the even tokens behind the class token
    kept = [f"{x}.kept", f"{x}.kept_indices"]
    after = _slice(graph, order[1], count, END)
    kept = graph.add_node("TopK", [after, _integers(graph, num_even - count)], kept, axis=1, largest=0)
    sources, remaining = _positions(graph, merged), _positions(graph, kept[0])
    target = graph.add("Unsqueeze", graph.add("GatherElements", partner, merged, axis=1), _integers(graph, 1))
    num_odd = num_tokens // 2
    odd_indices = graph.constant(f"indices.{num_odd}", np.arange(num_odd).reshape(-1, 1), np.int64)
    chosen = graph.add("Cast", graph.add("Equal", target, odd_indices), to=TensorProto.FLOAT)  # (N, T/2, r)
    source_sizes, odd_sizes = _take(graph, sizes, sources), _slice(graph, sizes, 1, END, 2)
    new_sizes = graph.add("Add", odd_sizes, graph.add("MatMul", chosen, source_sizes))
    weights = graph.add("Mul", chosen, graph.add("Transpose", source_sizes, perm=[0, 2, 1]))
    added = graph.add("MatMul", graph.add("Div", weights, new_sizes), _take(graph, x, sources))  # (N, T/2, D)
    odd = graph.add("Mul", _slice(graph, x, 1, END, 2), graph.add("Div", odd_sizes, new_sizes))
    odd = graph.add("Add", odd, added)
    merged_x = graph.add("Concat", _slice(graph, x, 0, 1), _take(graph, x, remaining), odd, axis=1)
    rest = _take(graph, sizes, remaining)
    return merged_x, graph.add("Concat", _slice(graph, sizes, 0, 1), rest, new_sizes, axis=1)


def _most_similar(graph: "GraphBuilder", key: str, num_tokens: int, num_heads: int) -> tuple[str, str]:
    """For each even token but the class token, the cosine of its key with the nearest odd token's, and its index."""
    heads = graph.add("Reshape", key, _integers(graph, 0, num_tokens, num_heads, -1))  # (N, T, h, D / h)
    mean = graph.add("ReduceMean", heads, _integers(graph, 2), keepdims=0)
    length = graph.add("ReduceL2", mean, _integers(graph, 2), keepdims=1)
    unit = graph.add("Div", mean, graph.add("Max", length, graph.constant("least_length", 1e-12)))
    odd = graph.add("Transpose", _slice(graph, unit, 1, END, 2), perm=[0, 2, 1])
    similarity = graph.add("MatMul", _slice(graph, unit, 2, END, 2), odd)  # (N, T/2, T/2)
    best = graph.add("ReduceMax", similarity, _integers(graph, 2), keepdims=0)
    return best, graph.add("ArgMax", similarity, axis=2, keepdims=0)


def _positions(graph: "GraphBuilder", indices: str) -> str:
    """Indices (N, n) of even tokens behind the class token -> positions among all tokens (N, n, 1)."""
    doubled = graph.add("Add", graph.add("Mul", indices, _integers(graph, 2)), _integers(graph, 2))
    return graph.add("Unsqueeze", doubled, _integers(graph, 2))


def _take(graph: "GraphBuilder", x: str, positions: str) -> str:
    """Tokens of each image: x (N, T, D), positions (N, n, 1) -> (N, n, D)."""
    return graph.add("GatherND", x, positions, batch_dims=1)


def _slice(graph: "GraphBuilder", x: str, start: int, stop: int, step: int = 1) -> str:
    """x[:, start:stop:step]"""
    return graph.add("Slice", x, *(_integers(graph, value) for value in (start, stop, 1, step)))


def _integers(graph: "GraphBuilder", *values: int) -> str:
    return graph.constant(f"integers.{'.'.join(map(str, values))}", values, np.int64)
