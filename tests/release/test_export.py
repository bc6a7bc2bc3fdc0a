"""The exported ONNX file: equal to the network at every size, self-contained, without traces of this machine."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.exports import random_images, run_onnx
from support.project import ROOT

from vitcifar.inference.session import OnnxClassifier
from vitcifar.model.predict import predict_logits
from vitcifar.release.export import exported_already


@pytest.mark.parametrize("size", [(1, 32, 32), (2, 8, 8), (3, 40, 50), (7, 300, 200)])  # images, height, width
def test_onnx_outputs_equal_the_network_at_every_size_and_number_of_images(
    published: Any, exported: Path, size: tuple[int, int, int]
) -> None:
    images = random_images(*size)
    logits, probabilities = run_onnx(exported, images)
    expected = predict_logits(published.networks[2], images)
    np.testing.assert_allclose(logits, expected, atol=5e-5)
    np.testing.assert_allclose(probabilities, torch.softmax(torch.tensor(expected) / 1.7, -1).numpy(), atol=1e-5)


def test_the_onnx_file_holds_its_metadata_and_all_its_weights(published: Any, exported: Path) -> None:
    classifier = OnnxClassifier(exported)
    assert classifier.class_names == published.splits.class_names
    assert (classifier.release_id, classifier.image_size) == ("again", 32)
    assert classifier.temperature == pytest.approx(1.7)
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]
    proto = onnx.load(exported)
    assert proto.opset_import[0].version == 20
    onnx.checker.check_model(proto)


def test_the_onnx_file_contains_no_path_of_this_machine(exported: Path) -> None:
    content = exported.read_bytes()
    for path in (str(ROOT), str(Path(torch.__file__).parent), "network.py", "torch/nn"):
        assert path.encode() not in content


def test_mlflow_saves_the_program_that_the_onnx_file_was_made_from() -> None:
    """It would export the network once more."""
    export, program = torch.export.export, object()
    with pytest.raises(RuntimeError), exported_already(program):  # type: ignore[arg-type]
        assert torch.export.export(torch.nn.Identity(), (torch.zeros(1),), dynamic_shapes=[None]) is program
        raise RuntimeError
    assert torch.export.export is export
