"""Export a trained network to one self-contained ONNX file: preprocessing, temperature and class names included."""

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from vitcifar.model.network import Classifier

OPSET = 20


def trace(network: "Classifier") -> "ExportedProgram":
    """The exported program that the ONNX and the pt2 file are both made from: any number of images of any size."""
    import torch

    from vitcifar.model.network import Released, evaluation_mode

    # A batch of 2 (the exporter specialises a batch of 1 to a constant) with height and width that differ.
    example = torch.zeros((2, 40, 48, 3), dtype=torch.uint8)
    sides = dict.fromkeys((0, 1, 2), torch.export.Dim.DYNAMIC)
    with evaluation_mode(network, "cpu"), torch.no_grad():
        program = torch.export.export(Released(network), (example,), dynamic_shapes={"image": sides}, strict=True)
    for node in program.graph.nodes:  # lines of source code, which name paths of this machine
        node.meta.pop("stack_trace", None)
        node.meta.pop("from_node", None)
    return program


@contextlib.contextmanager
def exported_already(program: "ExportedProgram") -> Iterator[None]:
    """Give MLflow, which exports the network once more, the program that there is: seconds less, and one graph."""
    import torch

    export = torch.export.export
    torch.export.export = lambda *args, **options: program
    try:
        yield
    finally:
        torch.export.export = export


def export_onnx(
    network: "Classifier",
    path: Path,
    *,
    class_names: Sequence[str],
    release_id: str,
    program: "ExportedProgram | None" = None,
) -> None:
    """Write the network as ONNX: `image` uint8 (N, H, W, 3) -> `logits`, `probabilities` (N, K) and `embedding` (N, D).

    N, H and W may be anything. The file contains no path of this machine and has no external data. `program` is the
    result of `trace`, if there is one already.
    """
    import onnx
    import torch
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    program = program or trace(network)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own deprecations
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits", "probabilities", "embedding"],
            external_data=False,
            verbose=False,
        )
    assert exported is not None
    ClearMetadataAndDocStringPass()(exported.model)  # source lines, as above
    proto = exported.model_proto
    set_metadata(proto, network, class_names=class_names, release_id=release_id)
    onnx.save_model(proto, str(path))


def set_metadata(
    proto: "ModelProto", network: "Classifier", *, class_names: Sequence[str], release_id: str, max_batch: int = 0
) -> None:
    """Write what serving needs into the file: class names, release id, image size, temperature.

    `max_batch` limits the images per run if a prediction would depend on the batch (0 = no limit).
    """
    import onnx

    properties = {
        "class_names": json.dumps(list(class_names)),
        "release_id": release_id,
        "image_size": str(int(network.image_size)),
        "temperature": repr(float(network.temperature)),
    }
    if max_batch:
        properties["max_batch"] = str(max_batch)
    onnx.helper.set_model_props(proto, properties)
    proto.producer_name = "vitcifar"
    proto.producer_version = ""
