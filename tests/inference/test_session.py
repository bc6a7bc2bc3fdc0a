"""An ONNX session predicts images of any size, rejects files with a reason and never reads another file."""

import concurrent.futures
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from joblib.externals.loky.backend import context
from onnx import ModelProto, TensorProto, helper
from support.toys import make_image, make_onnx

from vitcifar.data.image import read_image
from vitcifar.errors import ImageError, ReleaseError
from vitcifar.inference import session
from vitcifar.inference.machine import available_cores
from vitcifar.inference.session import MAX_BATCH, MAX_BATCH_PIXELS, OnnxClassifier


def images_of(*sizes: tuple[int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]


def test_logits_are_in_the_order_of_images_of_mixed_sizes(toy_onnx):
    images = images_of((8, 8), (3, 5), (8, 8), (1, 1), (3, 5), (64, 32))
    logits = OnnxClassifier(toy_onnx).logits(images)
    expected = np.stack([image.mean(axis=(0, 1)) / 16 for image in images])
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_more_images_than_one_batch_are_all_predicted(toy_onnx):
    images = images_of(*[(4, 4)] * (2 * MAX_BATCH + 1))
    assert OnnxClassifier(toy_onnx).logits(images).shape == (2 * MAX_BATCH + 1, 3)


def test_images_are_taken_in_parts_with_the_same_logits(toy_onnx, monkeypatch):
    images = [np.full((side, 4, 3), value, np.uint8) for value, side in enumerate((4, 4, 5, 4, 4))]
    model = OnnxClassifier(toy_onnx)
    expected = model.logits(images)
    monkeypatch.setattr(session, "MAX_DECODED", 2)
    np.testing.assert_allclose(model.logits(images), expected, atol=1e-6)
    with pytest.raises(ImageError, match="Image 3 is"):
        model.logits([*images[:3], images[0][0]])


def test_no_images_give_no_logits(toy_onnx):
    assert OnnxClassifier(toy_onnx).logits([]).shape == (0, 3)


def test_an_array_is_accepted_as_a_sequence_of_images(toy_onnx):
    images = np.stack(images_of((4, 4), (4, 4)))
    assert OnnxClassifier(toy_onnx).probabilities(images).sum(axis=1) == pytest.approx([1, 1])


def test_a_batch_stays_below_the_pixel_limit(toy_onnx, monkeypatch):
    classifier, sizes = OnnxClassifier(toy_onnx), []
    infer = classifier._infer
    monkeypatch.setattr(classifier, "_infer", lambda *args: sizes.append(args[1].size // 3) or infer(*args))
    classifier.logits(images_of(*[(1000, 1000)] * 6))
    assert max(sizes) <= MAX_BATCH_PIXELS and sum(sizes) == 6_000_000


def test_prediction_ranks_the_classes_and_its_timing_adds_up(toy_onnx):
    prediction = OnnxClassifier(toy_onnx).predict(make_image((200, 40, 100)))
    assert list(prediction.probabilities) == ["red", "blue", "green"]
    assert prediction.label == "red" and prediction.probability == max(prediction.probabilities.values())
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    timing = prediction.timing
    assert 0 < timing.decode_ms + timing.inference_ms <= timing.total_ms
    assert prediction.release_id == "toy"


def test_a_batch_of_images_has_the_predictions_of_the_single_files_without_timing(toy_onnx):
    classifier = OnnxClassifier(toy_onnx)
    colours = ["red", "blue", "green", "blue"]
    images = [read_image(make_image(colour, size=(4 + index, 5))) for index, colour in enumerate(colours)]
    predictions = classifier.predict_images(images)
    assert [prediction.label for prediction in predictions] == colours
    assert all(prediction.timing is None for prediction in predictions)
    single = classifier.predict(make_image("red", size=(4, 5)))
    assert predictions[0].probabilities == pytest.approx(single.probabilities)
    assert classifier.predict_images([]) == []


def test_a_prediction_becomes_one_dictionary_with_timing_only_if_measured(toy_onnx):
    classifier = OnnxClassifier(toy_onnx)
    fields = classifier.predict(make_image("green")).to_dict("toy", 3)
    assert list(fields) == ["label", "probabilities", "model", "version", "release_id", "timing"]
    assert (fields["label"], fields["model"], fields["version"], fields["release_id"]) == ("green", "toy", 3, "toy")
    assert set(fields["timing"]) == {"decode_ms", "inference_ms", "total_ms"}
    assert list(fields["probabilities"].values()) == sorted(fields["probabilities"].values(), reverse=True)
    (batched,) = classifier.predict_images([np.zeros((4, 4, 3), np.uint8)])
    assert "timing" not in batched.to_dict("toy", None) and json.loads(json.dumps(batched.to_dict("toy", None)))


def test_predict_accepts_a_path(toy_onnx, tmp_path):
    (tmp_path / "blue.jpg").write_bytes(make_image("blue", kind="JPEG"))
    assert OnnxClassifier(toy_onnx).predict(tmp_path / "blue.jpg").label == "blue"


def test_temperature_of_the_model_softens_the_probabilities(tmp_path):
    cold, warm = (make_onnx(tmp_path / f"{t}.onnx", temperature=t) for t in (1.0, 4.0))
    image = make_image((120, 100, 80))
    assert OnnxClassifier(warm).predict(image).probability < OnnxClassifier(cold).predict(image).probability
    assert OnnxClassifier(warm).temperature == 4.0


def test_a_model_gives_the_same_logits_from_bytes_and_from_a_path(toy_onnx):
    images = images_of((5, 7))
    by_path, by_bytes = OnnxClassifier(toy_onnx), OnnxClassifier(toy_onnx.read_bytes())
    np.testing.assert_array_equal(by_path.logits(images), by_bytes.logits(images))


def test_many_threads_get_the_same_logits_as_one(toy_onnx):
    classifier = OnnxClassifier(toy_onnx)
    images = images_of(*[(size, size + 1) for size in range(1, 40)])
    expected = classifier.logits(images)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for logits in pool.map(classifier.logits, [images] * 32):
            np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a" * 50])
def test_a_broken_file_is_rejected_in_one_sentence(tmp_path, content):
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(ReleaseError, match=r"broken\.onnx is not an") as caught:
        OnnxClassifier(tmp_path / "broken.onnx")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_rejected(toy_onnx):
    toy_onnx.write_bytes(toy_onnx.read_bytes()[:-100])
    with pytest.raises(ReleaseError):
        OnnxClassifier(toy_onnx)


def test_a_missing_file_is_rejected_in_one_sentence(tmp_path):
    with pytest.raises(ReleaseError, match="There is no file"):
        OnnxClassifier(tmp_path / "none.onnx")


@pytest.mark.parametrize("names", ["no json", "{}", "[]", "[1, 2, 3]", '["a", "a", "b"]'])
def test_a_model_without_valid_class_names_is_rejected(tmp_path, names):
    with pytest.raises(ReleaseError, match="class names"):
        OnnxClassifier(with_class_names(tmp_path / "toy.onnx", names))


def with_class_names(path: Path, names: str) -> Path:
    model = onnx.load(make_onnx(path))
    onnx.helper.set_model_props(model, {"class_names": names})
    path.write_bytes(model.SerializeToString())
    return path


def test_a_graph_with_other_inputs_is_rejected(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ReleaseError, match=r"expected image \(uint8\)"):
        OnnxClassifier(model.SerializeToString())


# External data: tensors whose values are in another file


def in_an_initializer(model: ModelProto, weights: TensorProto) -> None:
    model.graph.initializer.append(weights)


def in_a_constant(model: ModelProto, weights: TensorProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["weights"], value=weights))


def in_a_branch(model: ModelProto, weights: TensorProto) -> None:
    taken = helper.make_tensor_value_info("taken", TensorProto.FLOAT, [3, 3])
    weights.name = "inner"
    identity = helper.make_node("Identity", ["inner"], ["taken"])
    branch = helper.make_graph([identity], "branch", [], [taken], [weights])
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    model.graph.node.insert(0, helper.make_node("If", ["yes"], ["weights"], then_branch=branch, else_branch=branch))


def in_a_function(model: ModelProto, weights: TensorProto) -> None:
    constant = helper.make_node("Constant", [], ["weights"], value=weights)
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("local", "load", [], ["weights"], [constant], opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.insert(0, helper.make_node("load", [], ["weights"], domain="local"))


def external_model(folder: Path, put: Callable[[ModelProto, TensorProto], None], location: str) -> Path:
    """The toy model with its weights in the file weights.bin beside it, referred to by `location`."""
    weights = np.eye(3, dtype=np.float32)
    (folder / "weights.bin").write_bytes(weights.tobytes())
    tensor = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    model = onnx.load(make_onnx(folder / "model.onnx"))
    others = [initializer for initializer in model.graph.initializer if initializer.name != "weights"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(others)
    put(model, tensor)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


PLACEMENTS = [in_an_initializer, in_a_constant, in_a_branch, in_a_function]


@pytest.mark.parametrize("put", PLACEMENTS)
@pytest.mark.parametrize("given", [Path, Path.read_bytes])
def test_a_model_with_external_data_is_rejected_in_one_sentence(tmp_path, monkeypatch, put, given):
    path = external_model(tmp_path, put, "weights.bin")
    monkeypatch.chdir(tmp_path)  # where onnxruntime searches for the data of a model given as bytes
    onnxruntime.InferenceSession(given(path), providers=["CPUExecutionProvider"])  # it opens without our option
    with pytest.raises(ReleaseError, match="is not an ONNX file that can be opened") as caught:
        OnnxClassifier(given(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ReleaseError, match="is not an ONNX file that can be opened"):
        OnnxClassifier(given(path), openvino="fp32")  # which would read it: onnxruntime opens it first


@pytest.mark.parametrize("put", PLACEMENTS)
@pytest.mark.parametrize("location", ["{folder}/weights.bin", "../..{folder}/weights.bin", "*/_ORT_MEM_ADDR_/*"])
def test_external_data_is_rejected_however_its_location_is_written(tmp_path, put, location):
    path = external_model(tmp_path, put, location.format(folder=tmp_path))
    for model in (path, path.read_bytes()):
        with pytest.raises(ReleaseError, match="is not an ONNX file that can be opened"):
            OnnxClassifier(model)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_an_array_that_is_not_an_image_is_rejected(toy_onnx, image):
    with pytest.raises(ImageError, match=r"expected uint8 \(height, width, 3\)"):
        OnnxClassifier(toy_onnx).logits([image])


def test_a_file_that_is_not_an_image_raises_image_error(toy_onnx):
    with pytest.raises(ImageError):
        OnnxClassifier(toy_onnx).predict(b"no image")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity (Linux)")
def test_the_number_of_threads_respects_the_affinity_of_the_process():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from vitcifar.inference.machine import available_cores; print(available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_the_number_of_threads_can_be_set(toy_onnx):
    assert OnnxClassifier(toy_onnx, num_threads=3).num_threads == 3


@pytest.mark.parametrize(
    "files",
    [{"cpu.max": "50000 100000"}, {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}],
    ids=["v2", "v1"],
)
def test_the_quota_of_a_cgroup_limits_the_cores(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a core; the files of a container are those of another root here."""
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def moved(path: str) -> str:
        return str(path).replace("/sys/fs/cgroup", str(tmp_path))

    exists = os.path.exists
    monkeypatch.setattr(context, "open", lambda path: io.StringIO(Path(moved(path)).read_text()), raising=False)
    monkeypatch.setattr(context.os.path, "exists", lambda path: exists(moved(path)))
    assert available_cores() == 1
