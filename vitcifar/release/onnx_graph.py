"""The vision transformer written as the graph that onnxruntime runs fastest on a CPU, in float or with int8 products.

Measured on ViT-B/16 at 224, batch 1, 2 cores, onnxruntime 1.32 (benchmarks/serving_latency.py): attention is one
node (as fast as its parts, at batch 8 1.07 times as fast; with int8 it holds the products of queries, keys and values
too, so that each head stays on one thread: 0.91 of the time while threads hand data over slowly), sums and norms stand
alone (SkipLayerNormalization made the whole 1.1 times as long), biases ride on the products, normalisation is part of
the first convolution, and the last block answers for the class token alone.
Letters in the shapes: N images, T tokens, D hidden size, K classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcifar.errors import ReleaseError
from vitcifar.release.export import OPSET, label

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

MICROSOFT = "com.microsoft"
MICROSOFT_KINDS = ("MatMulIntegerToFloat", "MultiHeadAttention", "QAttention")
Range = tuple[float, float]


@dataclasses.dataclass
class GraphBuilder:
    """Nodes and constants as they are written down; `int8` and `ranges` say how products are."""

    int8: bool
    ranges: Mapping[str, Range] | None  # of each linear layer's input, from calibration; None = measured as it runs
    nodes: list[Any] = dataclasses.field(default_factory=list)
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    linear_inputs: dict[str, str] = dataclasses.field(default_factory=dict)  # layer -> the tensor that goes in

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values, dtype), name)
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: Any) -> Any:
        """Write one node; returns the name of its output, or a list of names."""
        from onnx import helper

        stem = name or f"{kind}_{len(self.nodes)}"
        names = [stem] if outputs == 1 else [f"{stem}_{i}" for i in range(outputs)]
        domain = MICROSOFT if kind in MICROSOFT_KINDS else ""
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=stem, domain=domain, **attributes))
        return stem if outputs == 1 else names

    def linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """x (N, T, in) -> (N, T, out); weight (out, in)."""
        self.linear_inputs[name] = x
        added = self.constant(f"{name}.bias", bias)
        if not self.int8:
            return self.add("Add", self.add("MatMul", x, self.constant(f"{name}.weight", weight.T)), added)
        x, x_scale, x_zero = self.rounded_input(x, name)
        rounded, scales = self.rounded_weight(name, weight)
        return self.add("MatMulIntegerToFloat", x, rounded, x_scale, scales, x_zero, "", added)

    def attention(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray, num_heads: int) -> str:
        """x (N, T, D) -> what each token takes from all (N, T, D); weight (3 D, D) gives queries, keys and values."""
        if not self.int8:
            mixed = self.add("Split", self.linear(x, name, weight, bias), axis=2, num_outputs=3, outputs=3)
            return self.add("MultiHeadAttention", *mixed, num_heads=num_heads)
        x, x_scale, x_zero = self.rounded_input(x, name)
        rounded, scales = self.rounded_weight(name, weight)
        added = self.constant(f"{name}.bias", bias)
        return self.add("QAttention", x, rounded, added, x_scale, scales, "", x_zero, num_heads=num_heads)

    def rounded_input(self, x: str, name: str) -> Sequence[str]:
        """A layer's input as uint8, its step and which number is 0: of the range given, or measured as it runs."""
        if self.ranges is None:
            return self.add("DynamicQuantizeLinear", x, outputs=3)
        low, high = self.ranges[name]
        low, high = min(low, 0.0), max(high, 0.0)  # 0 must have a number of its own
        step = max(high - low, 1e-12) / 255
        x_scale = self.constant(f"{name}.input_scale", step)
        x_zero = self.constant(f"{name}.input_zero", np.rint(-low / step), np.uint8)
        return self.add("QuantizeLinear", x, x_scale, x_zero), x_scale, x_zero

    def rounded_weight(self, name: str, weight: np.ndarray) -> tuple[str, str]:
        """A layer's weight (out, in) as int8 (in, out), and the step of each output (out,)."""
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / 127
        rounded = self.constant(f"{name}.weight", np.rint(weight / scale[:, None]).T, np.int8)
        return rounded, self.constant(f"{name}.scale", scale)

    def norm(self, x: str, name: str, layer: Any) -> str:
        weight = self.constant(f"{name}.weight", to_numpy(layer.weight))
        bias = self.constant(f"{name}.bias", to_numpy(layer.bias))
        return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=layer.eps)

    def first_token(self, x: str) -> str:
        """(N, T, D) -> (N, 1, D)"""
        zero, one = self.constant("zero", [0], np.int64), self.constant("one", [1], np.int64)
        return self.add("Slice", x, zero, one, one)


def build_graph(network: "Classifier", *, int8: bool, ranges: Mapping[str, Range] | None = None) -> GraphBuilder:
    """The network as nodes: `image` uint8 (N, H, W, 3) -> `logits`, `probabilities` (N, K); any N, H, W.

    int8 products take their activations' range from `ranges` (static), or measure it as they run (dynamic).
    """
    graph = GraphBuilder(int8, ranges)
    _blocks(graph, network, _tokens(graph, network))
    return graph


def to_proto(graph: GraphBuilder, network: "Classifier", *, class_names: Sequence[str], release_id: str) -> Any:
    """The nodes as a whole ONNX model."""
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(class_names)])
        for name in ("logits", "probabilities")
    ]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "vision_transformer", inputs, outputs, list(graph.constants.values())),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=10,
    )
    # Ranges that are measured as it runs are those of the whole batch: an image's answer would depend on the others.
    max_batch = 1 if graph.int8 and graph.ranges is None else None
    label(proto, network, class_names=class_names, release_id=release_id, max_batch=max_batch)
    return proto


def _tokens(graph: GraphBuilder, network: "Classifier") -> str:
    """image (N, H, W, 3) -> tokens (N, T, D), position added."""
    from onnx import TensorProto

    backbone, size = network.backbone, network.image_size
    pixels = graph.add("Cast", graph.add("Transpose", "image", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    number = graph.add("Shape", "image", start=0, end=1)
    sides = graph.add("Concat", number, graph.constant("sides", [3, size, size], np.int64), axis=0)
    pixels = graph.add(  # as torch resizes: bilinear, antialiased, weights at the border made to sum to 1
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
    """Pixels 0 to 255 (N, 3, S, S), normalised -> patches (N, D, S / P, S / P), by one convolution or several."""
    from torch import nn

    mean = to_numpy(network.preprocess.mean).reshape(-1, 1, 1)
    std = to_numpy(network.preprocess.std).reshape(-1, 1, 1)
    layers = [layer for layer in network.backbone.conv_proj.modules() if not list(layer.children())]
    if len(layers) == 1:  # no padding: normalising can be part of the kernel
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
            pixels = _normalise(graph, layer, name, pixels)
        elif isinstance(layer, nn.ReLU):
            pixels = graph.add("Relu", pixels)
        else:
            raise ReleaseError(f"There is no fast form of a network with {type(layer).__name__}: it serves in float.")
    return pixels


def _convolve(graph: GraphBuilder, layer: Any, name: str, kernel: np.ndarray, bias: np.ndarray, pixels: str) -> str:
    weights = graph.constant(f"{name}.weight", kernel), graph.constant(f"{name}.bias", bias)
    return graph.add(
        "Conv",
        *(pixels, *weights),
        strides=list(layer.stride),
        pads=list(layer.padding) * 2,
        kernel_shape=list(layer.kernel_size),
    )


def _normalise(graph: GraphBuilder, layer: Any, name: str, x: str) -> str:
    """One norm over all channels and places (N, C, H, W), then a weight and a bias for each channel."""
    one = graph.constant("unit", [1.0]), graph.constant("none", [0.0])
    flat = graph.add("Reshape", x, graph.constant("one_group", [0, 1, -1], np.int64))
    flat = graph.add("InstanceNormalization", flat, *one, epsilon=layer.eps)
    x = graph.add("Reshape", flat, graph.add("Shape", x))
    x = graph.add("Mul", x, graph.constant(f"{name}.weight", to_numpy(layer.weight).reshape(-1, 1, 1)))
    return graph.add("Add", x, graph.constant(f"{name}.bias", to_numpy(layer.bias).reshape(-1, 1, 1)))


def _blocks(graph: GraphBuilder, network: "Classifier", x: str) -> None:
    """tokens (N, T, D) -> logits and probabilities (N, K)."""
    blocks: list[Any] = list(network.blocks)
    for index, block in enumerate(blocks):
        last = index == len(blocks) - 1
        x = _attention(graph, f"blocks.{index}", block, x, last)
        hidden = graph.norm(x, f"blocks.{index}.norm_2", block.ln_2)
        up, down = block.mlp[0], block.mlp[3]
        hidden = graph.linear(hidden, f"blocks.{index}.up", to_numpy(up.weight), to_numpy(up.bias))
        hidden = graph.add("Gelu", hidden)
        hidden = graph.linear(hidden, f"blocks.{index}.down", to_numpy(down.weight), to_numpy(down.bias))
        x = graph.add("Add", hidden, x)
    x = graph.norm(x, "norm", network.backbone.encoder.ln)  # (N, 1, D)
    x = graph.add("Reshape", x, graph.constant("rows", [0, -1], np.int64))  # (N, D)
    head = graph.constant("head.weight", to_numpy(network.head.weight).T)
    logits = graph.add("MatMul", x, head)
    graph.add("Add", logits, graph.constant("head.bias", to_numpy(network.head.bias)), name="logits")
    scaled = graph.add("Div", "logits", graph.constant("temperature", float(network.temperature)))
    graph.add("Softmax", scaled, axis=-1, name="probabilities")


def _attention(graph: GraphBuilder, name: str, block: Any, x: str, last: bool) -> str:
    """Self-attention and its sum; in the last block only for the class token, which alone is asked."""
    attention = block.self_attention
    width = attention.embed_dim
    weight, bias = to_numpy(attention.in_proj_weight), to_numpy(attention.in_proj_bias)  # (3 D, D), (3 D,)
    hidden = graph.norm(x, f"{name}.norm_1", block.ln_1)
    if last:
        asked, x = graph.first_token(hidden), graph.first_token(x)
        query = graph.linear(asked, f"{name}.query", weight[:width], bias[:width])
        both = graph.linear(hidden, f"{name}.key_value", weight[width:], bias[width:])
        key, value = graph.add("Split", both, axis=2, num_outputs=2, outputs=2)
        answers = graph.add("MultiHeadAttention", query, key, value, num_heads=attention.num_heads)
    else:
        answers = graph.attention(hidden, f"{name}.qkv", weight, bias, attention.num_heads)
    out = attention.out_proj
    return graph.add("Add", graph.linear(answers, f"{name}.out", to_numpy(out.weight), to_numpy(out.bias)), x)


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor's values in float32 on the CPU."""
    return tensor.detach().cpu().float().numpy()
