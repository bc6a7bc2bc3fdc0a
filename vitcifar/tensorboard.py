"""TensorBoard's side of a run: a folder of event files, named as the run is in MLflow."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # of all runs, below the output folder: TensorBoard calls a run as its folder
MAX_FOLDER_NAME = 100
# The tab "Custom scalars": train and validation on one chart.
LAYOUT = {
    "training": {
        "loss": ["Multiline", ["^train/loss$", "^validation/loss$"]],
        "accuracy": ["Multiline", ["^train/accuracy$", "^validation/accuracy$"]],
    },
    "optimizer": {
        "learning rate": ["Multiline", ["^train/learning_rate"]],
        "gradient norm": ["Multiline", ["^step/gradient_norm$"]],
    },
}
FIRST_SETTINGS = ("learning_rate", "optimizer", "weight_decay", "label_smoothing", "epochs")  # and these first
FINAL_METRICS = ("validation/best_accuracy", "test/accuracy", "test/loss")  # columns of the tab "HParams"

Point = tuple[str, int, float]  # name, step, value


def new_folder(output_dir: Path, name: str, run_id: str) -> Path:
    """Create the folder of a run's event files: its name, followed by its id if another run has the name."""
    safe = re.sub(r"[^\w .,=+()-]", "_", name)[:MAX_FOLDER_NAME].strip(" .") or run_id
    for folder in (output_dir / FOLDER / safe, output_dir / FOLDER / f"{safe} {run_id[:8]}"):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    return output_dir / FOLDER / run_id


def open_writer(folder: Path) -> "SummaryWriter":
    """A writer of event files in a folder that exists already, or is new and then gets the layout."""
    from torch.utils.tensorboard import SummaryWriter

    is_new = not any(folder.glob("events.*"))
    writer = SummaryWriter(str(folder))
    if is_new:
        writer.add_custom_scalars(LAYOUT)
    return writer


def read_points(folder: Path) -> list[Point]:
    """Every scalar in the event files of a folder, sorted."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not folder.is_dir():
        return []
    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    names = accumulator.Tags()[SCALARS]
    return sorted((name, event.step, event.value) for name in names for event in accumulator.Scalars(name))


def add_settings(writer: "SummaryWriter", settings: Mapping[str, Any]) -> None:
    """The settings of a run for the tab "HParams", whose metrics are the last values of FINAL_METRICS."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    summaries = hparams(dict(settings), dict.fromkeys(FINAL_METRICS, 0.0))  # type: ignore[no-untyped-call]
    plugin = summaries[0].value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in FIRST_SETTINGS  # these are first in the table, the others by name
    plugin.content = data.SerializeToString()
    for summary in summaries:
        # `add_hparams` would make a run of its own.
        writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]


def add_pr_curve(writer: "SummaryWriter", name: str, is_class: np.ndarray, probabilities: np.ndarray) -> None:
    """The precision-recall curve of a class against all others, both (N,)."""
    writer.add_pr_curve(f"test/{name}", is_class, probabilities)


def add_projector(
    writer: "SummaryWriter", embeddings: np.ndarray, thumbnails: np.ndarray, columns: Mapping[str, Sequence[str]]
) -> None:
    """Embeddings (N, D) for the tab "Projector", with thumbnails uint8 (N, S, S, 3) and the columns of their labels."""
    import torch

    pixels = torch.from_numpy(thumbnails.transpose(0, 3, 1, 2).copy()).float() / 255  # (N, 3, S, S)
    rows = [[" ".join(str(cell).split()) for cell in row] for row in zip(*columns.values(), strict=True)]
    writer.add_embedding(embeddings, rows, pixels, tag="test images", metadata_header=list(columns))


def add_graph(writer: "SummaryWriter", program: "ExportedProgram") -> None:
    """The network for the tab "Graphs": the traced operations that its release is made of, grouped by module."""
    from tensorboard.compat.proto.attr_value_pb2 import AttrValue
    from tensorboard.compat.proto.config_pb2 import RunMetadata
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.node_def_pb2 import NodeDef
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    signature, names, nodes = program.graph_signature, {}, []
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        module = modules[-1] if modules and not modules[-1].startswith("_empty") else ""
        path = stored.get(node.name) or f"{module}.{node.name}".lstrip(".")
        names[node] = path.removeprefix("network.").replace(".", "/")  # of what the release wraps
        value = node.meta.get("val")
        sizes = [size if isinstance(size, int) else -1 for size in getattr(value, "shape", ())]
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])
        nodes.append(
            NodeDef(
                name=names[node],
                op=str(node.target) if node.op == "call_function" else node.op,
                input=[names[one] for one in node.all_input_nodes],
                attr={"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=[shape]))},
            )
        )
    writer._get_file_writer().add_graph((GraphDef(node=nodes), RunMetadata()))  # type: ignore[no-untyped-call]
