"""What TensorBoard shows of a run, read back through its own API."""

import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from vitcifar import tensorboard, tracking
from vitcifar.config import TrainConfig
from vitcifar.model.network import build_network
from vitcifar.release.export import trace


@pytest.fixture
def writer(tmp_path):
    with tensorboard.open_writer(tmp_path) as opened:
        yield opened


def events(writer):
    writer.close()
    return EventAccumulator(writer.log_dir).Reload()


def test_a_folder_is_named_as_the_run_and_a_second_run_of_that_name_has_its_id_too(tmp_path):
    names = [tensorboard.new_folder(tmp_path, "vit_b_16 head lr1e-3 s0", digit * 32).name for digit in "ab"]
    assert names == ["vit_b_16 head lr1e-3 s0", "vit_b_16 head lr1e-3 s0 bbbbbbbb"]
    hostile = tensorboard.new_folder(tmp_path, "../../etc/passwd: 7", "c" * 32)
    assert hostile == tmp_path / "tensorboard" / "_.._etc_passwd_ 7"
    assert tensorboard.new_folder(tmp_path, "...", "d" * 32).name == "d" * 32
    assert len(tensorboard.new_folder(tmp_path, "x" * 300, "e" * 32).name) == 100


def test_the_layout_puts_train_and_validation_on_one_chart(writer):
    content = events(writer).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    layout = Layout.FromString(content)
    charts = {chart.title: list(chart.multiline.tag) for row in layout.category for chart in row.chart}
    assert charts["loss"] == ["^train/loss$", "^validation/loss$"]
    assert charts["accuracy"] == ["^train/accuracy$", "^validation/accuracy$"]


def test_the_settings_are_one_row_of_hparams_with_the_final_metrics(writer):
    tensorboard.add_settings(writer, {"learning_rate": 1e-3, "arch": "vit_tiny"})
    found = events(writer).SummaryMetadata("_hparams_/experiment")
    data = HParamsPluginData.FromString(found.plugin_data.content)
    assert [info.name for info in data.experiment.hparam_infos if info.differs] == ["learning_rate"]
    assert {info.name.tag for info in data.experiment.metric_infos} == set(tensorboard.FINAL_METRICS)
    started = events(writer).SummaryMetadata("_hparams_/session_start_info")
    values = HParamsPluginData.FromString(started.plugin_data.content).session_start_info.hparams
    assert (values["learning_rate"].number_value, values["arch"].string_value) == (1e-3, "vit_tiny")
    assert not [path for path in Path(writer.log_dir).iterdir() if path.is_dir()], "a run of its own"


def test_the_projector_has_the_embeddings_their_labels_and_their_thumbnails(writer):
    embeddings = np.arange(12.0).reshape(4, 3)
    thumbnails = np.full((4, 32, 32, 3), [[[[0]]], [[[80]]], [[[160]]], [[[255]]]], np.uint8)
    columns = {"label": ["cat", "a\tdog\n", "cat", "dog"], "correct": ["yes", "no", "yes", "yes"]}
    tensorboard.add_projector(writer, embeddings, thumbnails, columns)
    writer.close()
    folder = Path(writer.log_dir)
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (entry,) = config.embeddings
    assert np.loadtxt(folder / entry.tensor_path).tolist() == embeddings.tolist()
    assert (folder / entry.metadata_path).read_text().splitlines()[:3] == ["label\tcorrect", "cat\tyes", "a dog\tno"]
    sprite = np.asarray(Image.open(folder / entry.sprite.image_path).convert("RGB"))
    assert sprite.shape == (64, 64, 3) and sprite[0, 32].tolist() == [80, 80, 80]


def test_the_precision_recall_curve_of_a_class_is_that_of_its_probabilities(writer):
    is_class, probabilities = np.array([True, True, False, False]), np.array([0.9, 0.4, 0.6, 0.1])
    tensorboard.add_pr_curve(writer, "cat", is_class, probabilities)
    curve = torch.tensor(events(writer).Tensors("test/cat")[0].tensor_proto.float_val).reshape(6, 127)
    precision, recall = curve[4], curve[5]
    at_half = round(0.5 * 126)
    assert (float(precision[at_half]), float(recall[at_half])) == (0.5, 0.5)  # 0.9 is right, 0.6 is wrong


def test_the_graph_has_the_operations_of_each_module_their_weights_and_their_shapes(writer):
    network = build_network(TrainConfig(arch="vit_tiny", weights="none"), ("a", "b", "c"))
    tensorboard.add_graph(writer, trace(network))
    nodes = {node.name: node for node in events(writer).Graph().node}
    head = next(node for name, node in nodes.items() if name.startswith("head/linear"))
    assert {"head/weight", "head/bias"} < {*head.input}
    (shape,) = head.attr["_output_shapes"].list.shape
    assert [one.size for one in shape.dim] == [-1, 3]
    assert all(source in nodes for node in nodes.values() for source in node.input)
    blocks = {name.split("/")[3] for name in nodes if name.startswith("backbone/encoder/layers/")}
    assert len(blocks) == len(network.blocks)
    assert not [name for name in nodes if name.startswith(("network", "_"))]


def test_a_run_writes_its_note_its_histograms_and_one_layout(workspace):
    with (
        pytest.raises(RuntimeError),
        tracking.start_run(experiment="x", output_dir=Path("runs"), run_name="a b") as run,
    ):
        run.note("**hello**")
        run.log(1, {"train/loss": 1.0})
        run.log_histograms(1, {"head/weight": torch.arange(4.0)})
        raise RuntimeError("killed")
    with tracking.start_run(experiment="x", output_dir=Path("runs"), run_id=run.run_id) as resumed:
        resumed.log(2, {"train/loss": 0.5})
    assert resumed.event_files == run.event_files == Path("runs/tensorboard/a b")
    found = EventAccumulator(str(run.event_files)).Reload()
    assert found.Tags()["histograms"] == ["head/weight"] and found.Histograms("head/weight")[0].histogram_value.num == 4
    assert len(found.Tensors("custom_scalars__config__")) == 1
    assert b"hello" in found.Tensors("summary/text_summary")[0].tensor_proto.string_val[0]
    assert [point[1:] for point in tensorboard.read_points(run.event_files)] == [(1, 1.0), (2, 0.5)]
    in_mlflow = run.client.get_run(run.run_id)
    assert in_mlflow.info.run_name == in_mlflow.data.tags["tensorboard"] == run.event_files.name
    copied = Path(mlflow.artifacts.download_artifacts(run_id=run.run_id, artifact_path="tensorboard"))
    assert tensorboard.read_points(copied) == tensorboard.read_points(run.event_files)
    content = EventAccumulator(str(copied)).Reload().Tensors("custom_scalars__config__")[0]
    assert [row.title for row in Layout.FromString(content.tensor_proto.string_val[0]).category] == [
        *tensorboard.LAYOUT
    ]


def test_two_runs_of_one_name_are_two_runs_in_both_trackers(workspace):
    folders = []
    for _ in range(2):
        with tracking.start_run(experiment="x", output_dir=Path("runs"), run_name="twice") as run:
            folders.append(run.event_files.name)
        assert run.client.get_run(run.run_id).data.tags["tensorboard"] == run.event_files.name
    assert folders == ["twice", f"twice {run.run_id[:8]}"]


def test_a_run_of_an_earlier_version_is_resumed_in_its_own_folder(workspace):
    with pytest.raises(RuntimeError), tracking.start_run(experiment="x", output_dir=Path("runs")) as run:
        run.log(1, {"learning_rate": 1.0})
        raise RuntimeError("killed")
    run.client.delete_tag(run.run_id, "tensorboard")
    shutil.move(run.event_files, run.folder / "tensorboard")
    with tracking.start_run(experiment="x", output_dir=Path("runs"), run_id=run.run_id) as resumed:
        resumed.log(1, {"learning_rate": 1.0})
        resumed.log(2, {"learning_rate": 0.5})
    assert resumed.event_files == Path("runs") / run.run_id / "tensorboard"
    assert [point[1:] for point in tensorboard.read_points(resumed.event_files)] == [(1, 1.0), (2, 0.5)]
