"""From the trained network to one ONNX file that carries its preprocessing, its temperature and its class names."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from vitcifar.model.network import Classifier

OPSET = 20


@contextlib.contextmanager
def at_rest(network: "Classifier") -> Iterator["Classifier"]:
    """The network on the CPU and in evaluation mode, and afterwards as it was."""
    device, training = network.temperature.device, network.training
    try:
        yield network.cpu().eval()
    finally:
        network.to(device).train(training)


def trace(network: "Classifier") -> "ExportedProgram":
    """The graph that the ONNX file and the pt2 are both made from: any number of images of any size."""
    import torch

    from vitcifar.model.network import Released

    # A batch of 2 (with 1 the exporter takes the batch for a constant), and two sides that differ.
    example = torch.zeros((2, 40, 48, 3), dtype=torch.uint8)
    sides = dict.fromkeys((0, 1, 2), torch.export.Dim.DYNAMIC)
    with at_rest(network), torch.no_grad():
        program = torch.export.export(Released(network), (example,), dynamic_shapes={"image": sides}, strict=True)
    for node in program.graph.nodes:  # notes on which line of which file on this machine it came from
        node.meta.pop("stack_trace", None)
        node.meta.pop("from_node", None)
    return program


def export_onnx(
    network: "Classifier",
    path: Path,
    *,
    class_names: Sequence[str],
    release_id: str,
    program: "ExportedProgram | None" = None,
) -> None:
    """Write the network as ONNX: `image` uint8 (N, H, W, 3) -> `logits` (N, K), `probabilities` (N, K); any N, H, W.

    The file appears whole or not at all, holds no path of this machine and needs no other file. `program` is the
    network's trace, when there is one already.
    """
    proto = _to_onnx(program or trace(network))
    _strip(proto)
    label(proto, network, class_names=class_names, release_id=release_id)
    save(proto, path)


def label(
    proto: Any, network: "Classifier", *, class_names: Sequence[str], release_id: str, max_batch: int | None = None
) -> None:
    """Write into the file what it takes to serve it: class names, release id, image size, temperature, and how many
    images it may be asked at once if an answer would depend on the others."""
    import onnx

    properties = {
        "class_names": json.dumps(list(class_names)),
        "release_id": release_id,
        "image_size": str(int(network.image_size)),
        "temperature": repr(float(network.temperature)),
    }
    if max_batch is not None:
        properties["max_batch"] = str(max_batch)
    onnx.helper.set_model_props(proto, properties)
    proto.producer_name = "vitcifar"
    proto.producer_version = ""


def save(proto: Any, path: Path) -> None:
    """Write an ONNX file: whole or not at all."""
    import onnx

    partial = path.with_name(path.name + ".partial")
    try:
        onnx.save_model(proto, str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _to_onnx(program: "ExportedProgram") -> Any:
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own deprecations
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits", "probabilities"],
            external_data=False,
            verbose=False,
        )
    assert exported is not None
    return exported.model_proto


def _strip(proto: Any) -> None:
    """The exporter notes on every node what it came from, with paths of this machine."""
    for part in (proto, proto.graph, *proto.functions):
        _clear([part])
    for part in (proto.graph, *proto.functions):
        _strip_nodes(part.node)
        _clear(part.value_info)
    _clear(proto.graph.initializer)
    _clear(proto.graph.input)
    _clear(proto.graph.output)


def _strip_nodes(nodes: Iterable[Any]) -> None:
    for node in nodes:
        _clear([node])
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _strip_nodes(graph.node)


def _clear(messages: Iterable[Any]) -> None:
    for message in messages:
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
