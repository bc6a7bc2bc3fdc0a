"""inference/: an ONNX session answers images of any size, says why it refuses a file, and uses its own session."""

import concurrent.futures
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.toys import make_image, make_onnx

from vitcifar.errors import ImageError, ReleaseError
from vitcifar.inference import session
from vitcifar.inference.session import MAX_BATCH, OnnxClassifier


def images_of(*sizes: tuple[int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]


def test_logits_keep_the_order_of_pictures_of_mixed_sizes(toy_onnx):
    images = images_of((8, 8), (3, 5), (8, 8), (1, 1), (3, 5), (64, 32))
    logits = OnnxClassifier(toy_onnx).logits(images)
    expected = np.stack([image.mean(axis=(0, 1)) / 16 for image in images])
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_more_pictures_than_one_batch_are_all_answered(toy_onnx):
    images = images_of(*[(4, 4)] * (2 * MAX_BATCH + 1))
    assert OnnxClassifier(toy_onnx).logits(images).shape == (2 * MAX_BATCH + 1, 3)


def test_no_pictures_give_no_logits(toy_onnx):
    assert OnnxClassifier(toy_onnx).logits([]).shape == (0, 3)


def test_an_array_of_pictures_is_a_sequence_of_pictures(toy_onnx):
    images = np.stack(images_of((4, 4), (4, 4)))
    assert OnnxClassifier(toy_onnx).probabilities(images).sum(axis=1) == pytest.approx([1, 1])


def test_no_thread_spins_after_an_answer(toy_onnx):
    classifier = OnnxClassifier(toy_onnx, num_threads=2)
    classifier.logits(images_of((900, 900)))
    before = time.process_time()
    time.sleep(0.05)
    assert time.process_time() - before < 0.01


def test_answer_ranks_the_classes_and_adds_up_its_time(toy_onnx):
    answer = OnnxClassifier(toy_onnx).predict(make_image((200, 40, 100)))
    assert list(answer.probabilities) == ["red", "blue", "green"]
    assert answer.label == "red" and answer.probability == max(answer.probabilities.values())
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    timing = answer.timing
    assert 0 < timing.decode_ms + timing.inference_ms <= timing.total_ms
    assert answer.release_id == "toy"


def test_answer_takes_a_path(toy_onnx, tmp_path):
    (tmp_path / "blue.jpg").write_bytes(make_image("blue", kind="JPEG"))
    assert OnnxClassifier(toy_onnx).predict(tmp_path / "blue.jpg").label == "blue"


def test_temperature_of_the_file_softens_the_probabilities(tmp_path):
    cold, warm = (make_onnx(tmp_path / f"{t}.onnx", temperature=t) for t in (1.0, 4.0))
    image = make_image((120, 100, 80))
    assert OnnxClassifier(warm).predict(image).probability < OnnxClassifier(cold).predict(image).probability
    assert OnnxClassifier(warm).temperature == 4.0


def test_bytes_and_path_of_a_model_answer_alike(toy_onnx):
    images = images_of((5, 7))
    by_path, by_bytes = OnnxClassifier(toy_onnx), OnnxClassifier(toy_onnx.read_bytes())
    np.testing.assert_array_equal(by_path.logits(images), by_bytes.logits(images))


def test_many_threads_get_the_same_answers_as_one(toy_onnx):
    classifier = OnnxClassifier(toy_onnx)
    images = images_of(*[(size, size + 1) for size in range(1, 40)])
    expected = classifier.logits(images)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for logits in pool.map(classifier.logits, [images] * 32):
            np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a" * 50])
def test_a_broken_file_is_one_sentence(tmp_path, content):
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(ReleaseError, match=r"broken\.onnx is not an") as caught:
        OnnxClassifier(tmp_path / "broken.onnx")
    assert "\n" not in str(caught.value)


def test_a_cut_off_file_is_refused(toy_onnx):
    toy_onnx.write_bytes(toy_onnx.read_bytes()[:-100])
    with pytest.raises(ReleaseError):
        OnnxClassifier(toy_onnx)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ReleaseError, match="There is no file"):
        OnnxClassifier(tmp_path / "none.onnx")


@pytest.mark.parametrize("names", ["no json", "{}", "[]", "[1, 2, 3]", '["a", "a", "b"]'])
def test_a_foreign_file_without_class_names_is_refused(tmp_path, names):
    with pytest.raises(ReleaseError, match="class names"):
        OnnxClassifier(foreign(tmp_path / "toy.onnx", names))


def foreign(path: Path, names: str) -> Path:
    import onnx

    model = onnx.load(make_onnx(path))
    onnx.helper.set_model_props(model, {"class_names": names})
    path.write_bytes(model.SerializeToString())
    return path


def test_a_graph_with_other_inputs_is_refused(tmp_path):
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ReleaseError, match=r"expected image \(uint8\)"):
        OnnxClassifier(model.SerializeToString())


def test_a_model_given_as_bytes_reads_no_file_of_the_working_directory(tmp_path, monkeypatch):
    import onnx

    model = onnx.load(make_onnx(tmp_path / "toy.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name == "weights":
            tensor.raw_data = np.eye(3, dtype=np.float32).tobytes()
            tensor.ClearField("float_data")
    onnx.save_model(model, tmp_path / "out.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    assert (tmp_path / "weights.bin").is_file()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReleaseError):
        OnnxClassifier((tmp_path / "out.onnx").read_bytes())


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_an_array_that_is_no_picture_is_refused(toy_onnx, image):
    with pytest.raises(ImageError, match=r"expected uint8 \(height, width, 3\)"):
        OnnxClassifier(toy_onnx).logits([image])


def test_a_bad_picture_is_a_picture_error(toy_onnx):
    with pytest.raises(ImageError):
        OnnxClassifier(toy_onnx).predict(b"no image")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux lets a test choose its CPUs")
def test_threads_respect_the_affinity_of_the_process():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from vitcifar.inference.session import available_cores; print(available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_threads_respect_the_quota_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "QUOTA", tmp_path / "cpu.max")
    without = session.available_cores()
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert session.available_cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert session.available_cores() == without


def test_hyper_threads_of_one_core_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "CPUS", tmp_path)
    monkeypatch.setattr(session, "QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(siblings + "\n")
    assert session.available_cores() == 2


def test_the_number_of_threads_can_be_given(toy_onnx):
    assert OnnxClassifier(toy_onnx, num_threads=3).num_threads == 3
