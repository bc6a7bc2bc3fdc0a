"""The vision transformer built node by node as the ONNX graph that onnxruntime runs fastest on a CPU, float or int8.

The network is thus defined twice: traced from model/network.py, and here. A new layer must be added to both. A network
that merges tokens has this graph as its float file too.
Letters in the shapes: N images, T tokens, D hidden size, K classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from vitcifar.errors import ReleaseError
from vitcifar.inference.machine import saturates_int8
from vitcifar.release.export import OPSET, set_metadata
from vitcifar.release.token_merging_graph import attention_bias, merge, start_sizes

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

# Measured on ViT-B/16 at 224, batch 1, 2 cores, onnxruntime 1.32 (benchmarks/serving_latency.py): attention is one node
# (as fast as its parts, at batch 8 1.07 times as fast; with int8 it includes the query, key and value projections, so
# that each head stays on one thread: 0.91 of the time while thread synchronisation is slow), additions and norms are
# separate nodes (SkipLayerNormalization took 1.1 times as long in total), biases are part of the matrix products, and
# the last block computes the class token only. In int8, normalisation is part of the first convolution; in float it is
# not: OpenVINO in bfloat16 was then 3.5 times as far from the network's logits.
MICROSOFT = "com.microsoft"
MICROSOFT_OPS = ("MatMulIntegerToFloat", "MultiHeadAttention", "QAttention")
Range = tuple[float, float]


def exact_weight_bits() -> int:
    """The most bits of a weight with which this processor computes products exactly."""
    return 7 if saturates_int8() else 8


@dataclasses.dataclass
class GraphBuilder:
    """The nodes and constants of a graph; with `int8`, matrix products are quantized: weights per output channel,
    activations over `ranges` (static) or over the range measured at run time (dynamic). Weights have 8 bits, or 7 where
    products of 8 saturate."""

    int8: bool
    ranges: Mapping[str, Range] | None  # of each linear layer's input, from calibration; None = dynamic
    nodes: list[NodeProto] = dataclasses.field(default_factory=list)
    constants: dict[str, TensorProto] = dataclasses.field(default_factory=dict)
    linear_inputs: dict[str, str] = dataclasses.field(default_factory=dict)  # layer -> name of its input tensor
    weight_bits: int = dataclasses.field(default_factory=exact_weight_bits)

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values, dtype), name)
        return name

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        return self.add_node(op, inputs, [name or f"{op}_{len(self.nodes)}"], **attributes)[0]

    def add_node(self, op: str, inputs: Sequence[str], outputs: list[str], **attributes: Any) -> list[str]:
        """Append a node; returns `outputs`."""
        domain = MICROSOFT if op in MICROSOFT_OPS else ""
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=outputs[0], domain=domain, **attributes))
        return outputs

    def linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """x (N, T, in) -> (N, T, out); weight (out, in)."""
        self.linear_inputs[name] = x
        added = self.constant(f"{name}.bias", bias)
        if not self.int8:
            return self.add("Add", self.add("MatMul", x, self.constant(f"{name}.weight", weight.T)), added)
        x, x_scale, x_zero_point, quantized, scales = self.quantize(x, name, weight)
        return self.add("MatMulIntegerToFloat", x, quantized, x_scale, scales, x_zero_point, "", added)

    def attention(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray, num_heads: int) -> str:
        """Multi-head self-attention x (N, T, D) -> (N, T, D); weight (3 D, D) projects to queries, keys and values."""
        if not self.int8:
            return self.add("MultiHeadAttention", *self.project(x, name, weight, bias), num_heads=num_heads)
        x, x_scale, x_zero_point, quantized, scales = self.quantize(x, name, weight)
        added = self.constant(f"{name}.bias", bias)
        return self.add("QAttention", x, quantized, added, x_scale, scales, "", x_zero_point, num_heads=num_heads)

    def project(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> list[str]:
        """Queries, keys and values of x, each (N, T, D); or keys and values, if weight and bias are theirs."""
        parts = [f"{name}.{part}" for part in ("query", "key", "value")][-len(weight) // weight.shape[1] :]
        projected = self.linear(x, name, weight, bias)
        return self.add_node("Split", [projected], parts, axis=2, num_outputs=len(parts))

    def quantize_input(self, x: str, name: str) -> Sequence[str]:
        """The input of a layer as uint8, its scale and its zero point: of the calibrated range, or dynamic."""
        if self.ranges is None:
            outputs = [f"{name}.input", f"{name}.input_scale", f"{name}.input_zero_point"]
            return self.add_node("DynamicQuantizeLinear", [x], outputs)
        low, high = self.ranges[name]
        low, high = min(low, 0.0), max(high, 0.0)  # 0 must be representable exactly
        scale = max(high - low, 1e-12) / 255
        x_scale = self.constant(f"{name}.input_scale", scale)
        x_zero_point = self.constant(f"{name}.input_zero_point", np.rint(-low / scale), np.uint8)
        return self.add("QuantizeLinear", x, x_scale, x_zero_point), x_scale, x_zero_point

    def quantize(self, x: str, name: str, weight: np.ndarray) -> tuple[str, ...]:
        """The input of a layer as `quantize_input` gives it, its weight (out, in) as symmetric int8 (in, out), and the
        scale of each output channel (out,)."""
        inputs = self.quantize_input(x, name)
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / (2 ** (self.weight_bits - 1) - 1)
        quantized = self.constant(f"{name}.weight", np.rint(weight / scale[:, None]).T, np.int8)
        return *inputs, quantized, self.constant(f"{name}.scale", scale)

    def norm(self, x: str, name: str, layer: Any) -> str:
        weight = self.constant(f"{name}.weight", to_numpy(layer.weight))
        bias = self.constant(f"{name}.bias", to_numpy(layer.bias))
        return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=layer.eps)

    def first_token(self, x: str) -> str:
        """(N, T, D) -> (N, 1, D)"""
        zero, one = self.constant("zero", [0], np.int64), self.constant("one", [1], np.int64)
        return self.add("Slice", x, zero, one, one)


def build_graph(network: "Classifier", *, int8: bool, ranges: Mapping[str, Range] | None = None) -> GraphBuilder:
    """The graph of a network: `image` uint8 (N, H, W, 3) -> `logits`, `probabilities` (N, K), `embedding` (N, D).

    With `int8`, `ranges` of the activations mean static quantization, None dynamic. Raises ReleaseError for a layer
    that has no counterpart here.
    """
    graph = GraphBuilder(int8, ranges)
    _blocks(graph, network, _tokens(graph, network))
    return graph


def to_proto(graph: GraphBuilder, network: "Classifier", *, class_names: Sequence[str], release_id: str) -> ModelProto:
    """The graph as an ONNX model with the metadata of a release."""
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])]
    widths = {"logits": len(class_names), "probabilities": len(class_names), "embedding": network.head.in_features}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in widths.items()]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "vision_transformer", inputs, outputs, list(graph.constants.values())),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=10,
    )
    # Dynamic ranges span the batch: the prediction of an image would depend on the other images.
    max_batch = 1 if graph.int8 and graph.ranges is None else 0
    set_metadata(proto, network, class_names=class_names, release_id=release_id, max_batch=max_batch)
    return proto


def save_graph(
    network: "Classifier",
    path: Path,
    *,
    class_names: Sequence[str],
    release_id: str,
    int8: bool = False,
    ranges: Mapping[str, Range] | None = None,
) -> None:
    """Write the graph of a network to a file; int8 as in `build_graph`."""
    graph = build_graph(network, int8=int8, ranges=ranges)
    onnx.save_model(to_proto(graph, network, class_names=class_names, release_id=release_id), str(path))


def _tokens(graph: GraphBuilder, network: "Classifier") -> str:
    """image (N, H, W, 3) -> tokens (N, T, D) with position embedding."""
    backbone, size = network.backbone, network.image_size
    pixels = graph.add("Cast", graph.add("Transpose", "image", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    number = graph.add("Shape", "image", start=0, end=1)
    sides = graph.add("Concat", number, graph.constant("sides", [3, size, size], np.int64), axis=0)
    pixels = graph.add(  # as torch.nn.functional.interpolate: bilinear, antialiased, border weights renormalised
        "Resize",
        *(pixels, "", "", sides),
        mode="linear",
        antialias=1,
        exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )
    patches = _patches(graph, network, pixels)
    width = backbone.hidden_dim
    flat = graph.add("Reshape", patches, graph.constant("flat", [0, width, -1], np.int64))
    first = graph.add("Concat", number, graph.constant("one_token", [1, width], np.int64), axis=0)
    token = graph.add("Expand", graph.constant("class_token", to_numpy(backbone.class_token)), first)
    tokens = graph.add("Concat", token, graph.add("Transpose", flat, perm=[0, 2, 1]), axis=1)
    return graph.add("Add", tokens, graph.constant("position", to_numpy(backbone.encoder.pos_embedding)))


def _patches(graph: GraphBuilder, network: "Classifier", pixels: str) -> str:
    """Pixels 0 to 255 (N, 3, S, S) -> normalised -> patches (N, D, S / P, S / P), by one or several convolutions."""
    from torch import nn

    mean = to_numpy(network.preprocess.mean).reshape(-1, 1, 1)
    std = to_numpy(network.preprocess.std).reshape(-1, 1, 1)
    layers = [layer for layer in network.backbone.conv_proj.modules() if not list(layer.children())]
    if len(layers) == 1 and graph.int8:  # no padding: the normalisation folds into the kernel, which stays float32
        kernel = to_numpy(layers[0].weight)  # (D, 3, P, P)
        bias = to_numpy(layers[0].bias) - (kernel * (mean / std)).sum(axis=(1, 2, 3))
        return _convolve(graph, layers[0], "patches", kernel / (255 * std), bias, pixels)
    pixels = graph.add("Sub", pixels, graph.constant("mean", 255 * mean))
    pixels = graph.add("Div", pixels, graph.constant("std", 255 * std))
    for index, layer in enumerate(layers):
        name = f"patches.{index}"
        if isinstance(layer, nn.Conv2d):
            bias = to_numpy(layer.bias) if layer.bias is not None else np.zeros(layer.out_channels, np.float32)
            pixels = _convolve(graph, layer, name, to_numpy(layer.weight), bias, pixels)
        elif isinstance(layer, nn.GroupNorm) and layer.num_groups == 1:
            pixels = _group_norm(graph, layer, name, pixels)
        elif isinstance(layer, nn.ReLU):
            pixels = graph.add("Relu", pixels)
        else:
            kind = type(layer).__name__
            raise ReleaseError(f"int8 does not support a {kind} layer in the patch embedding: the float file serves.")
    return pixels


def _convolve(graph: GraphBuilder, layer: Any, name: str, kernel: np.ndarray, bias: np.ndarray, pixels: str) -> str:
    inputs = pixels, graph.constant(f"{name}.weight", kernel), graph.constant(f"{name}.bias", bias)
    strides, pads = list(layer.stride), list(layer.padding) * 2
    return graph.add("Conv", *inputs, kernel_shape=list(layer.kernel_size), strides=strides, pads=pads)


def _group_norm(graph: GraphBuilder, layer: Any, name: str, x: str) -> str:
    """Group norm with one group, x (N, C, H, W): over all channels and positions, then weight and bias per channel."""
    unit = graph.constant("unit", [1.0]), graph.constant("none", [0.0])
    flat = graph.add("Reshape", x, graph.constant("one_group", [0, 1, -1], np.int64))
    flat = graph.add("InstanceNormalization", flat, *unit, epsilon=layer.eps)
    x = graph.add("Reshape", flat, graph.add("Shape", x))
    x = graph.add("Mul", x, graph.constant(f"{name}.weight", to_numpy(layer.weight).reshape(-1, 1, 1)))
    return graph.add("Add", x, graph.constant(f"{name}.bias", to_numpy(layer.bias).reshape(-1, 1, 1)))


def _blocks(graph: GraphBuilder, network: "Classifier", x: str) -> None:
    """tokens (N, T, D) -> logits and probabilities (N, K), embedding (N, D)."""
    blocks: list[Any] = list(network.blocks)
    counts = network.token_counts
    sizes = start_sizes(graph, counts[0]) if network.token_merging else ""  # of the tokens, (N, T, 1)
    for index, block in enumerate(blocks):
        last = index == len(blocks) - 1
        x, sizes = _attention(graph, f"blocks.{index}", block, x, sizes, counts[index : index + 2], last)
        hidden = graph.norm(x, f"blocks.{index}.norm_2", block.ln_2)
        up, down = block.mlp[0], block.mlp[3]
        hidden = graph.linear(hidden, f"blocks.{index}.up", to_numpy(up.weight), to_numpy(up.bias))
        hidden = graph.add("Gelu", hidden)
        hidden = graph.linear(hidden, f"blocks.{index}.down", to_numpy(down.weight), to_numpy(down.bias))
        x = graph.add("Add", hidden, x)
    x = graph.norm(x, "norm", network.backbone.encoder.ln)  # (N, 1, D)
    x = graph.add("Reshape", x, graph.constant("rows", [0, -1], np.int64), name="embedding")  # (N, D)
    head = graph.constant("head.weight", to_numpy(network.head.weight).T)
    logits = graph.add("MatMul", x, head)
    graph.add("Add", logits, graph.constant("head.bias", to_numpy(network.head.bias)), name="logits")
    scaled = graph.add("Div", "logits", graph.constant("temperature", float(network.temperature)))
    graph.add("Softmax", scaled, axis=-1, name="probabilities")


def _attention(
    graph: GraphBuilder, name: str, block: Any, x: str, sizes: str, counts: Sequence[int], last: bool
) -> tuple[str, str]:
    """Self-attention with its residual connection; in the last block for the class token only, which the head reads.

    With `sizes` of the tokens, attention is proportional, and tokens are merged from counts[0] to counts[1] behind it.
    """
    attention = block.self_attention
    width, num_heads = attention.embed_dim, attention.num_heads
    weight, bias = to_numpy(attention.in_proj_weight), to_numpy(attention.in_proj_bias)  # (3 D, D), (3 D,)
    hidden, key = graph.norm(x, f"{name}.norm_1", block.ln_1), ""
    score_bias = ["", "", attention_bias(graph, sizes, 1 if last else counts[0])] if sizes else []
    if last:
        token, x = graph.first_token(hidden), graph.first_token(x)
        query = graph.linear(token, f"{name}.query", weight[:width], bias[:width])
        both = graph.project(hidden, f"{name}.key_value", weight[width:], bias[width:])
        output = graph.add("MultiHeadAttention", query, *both, *score_bias, num_heads=num_heads)
    elif sizes:
        query, key, value = graph.project(hidden, f"{name}.qkv", weight, bias)
        output = graph.add("MultiHeadAttention", query, key, value, *score_bias, num_heads=num_heads)
    else:
        output = graph.attention(hidden, f"{name}.qkv", weight, bias, num_heads)
    out = attention.out_proj
    x = graph.add("Add", graph.linear(output, f"{name}.out", to_numpy(out.weight), to_numpy(out.bias)), x)
    if count := counts[0] - counts[1]:
        return merge(graph, x, sizes, key, num_tokens=counts[0], num_heads=num_heads, count=count)
    return x, sizes


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor as a float32 array."""
    return np.asarray(tensor.detach().cpu().float())
