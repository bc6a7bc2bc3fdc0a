"""Loaded versions: what `predict` accepts, that nothing is opened before it is verified, and many files."""

import gc
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.toys import make_image, make_onnx

from vitcifar import tracking
from vitcifar.errors import ImageError, RegistryError, ReleaseError
from vitcifar.inference.session import MAX_BATCH
from vitcifar.release.cache import lock
from vitcifar.release.manifest import Manifest
from vitcifar.serving.loaded_model import PredictionTable, open_folder, open_version, predict_files

RED = np.full((5, 7, 3), (255, 0, 0), np.uint8)


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "array", "pil"])
def test_predict_accepts_every_kind_of_image(model, tmp_path, kind):
    path = tmp_path / "red.png"
    path.write_bytes(make_image("red"))
    source = {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "array": RED,
        "pil": Image.open(path),
    }[kind]
    prediction = model.predict(source)
    assert prediction.label == "red" and prediction.release_id == "toy"
    assert (prediction.timing is not None) is (kind in ("path", "text", "bytes"))
    (from_list,) = model.predict([source])
    assert from_list.probabilities == pytest.approx(prediction.probabilities)


def test_a_version_in_memory_keeps_its_folder_and_leaves_it_without_a_warning(registry, tmp_path, monkeypatch, recwarn):
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path))
    model = open_version(registry, 1)
    folder = model.manifest.onnx_path.parent
    with pytest.raises(BlockingIOError):
        lock(folder, shared=False)
    warnings.simplefilter("always", ResourceWarning)
    del model
    gc.collect()
    lock(folder, shared=False).close()
    assert not [warning for warning in recwarn if "release.json" in str(warning.message)]


def test_predict_of_a_list_keeps_its_order_over_several_batches(model):
    colours = ["red", "green", "blue", "blue"] * (MAX_BATCH // 2)
    predictions = model.predict([make_image(colour) for colour in colours])
    assert [prediction.label for prediction in predictions] == colours
    assert model.predict([]) == []


def test_predict_of_a_pil_image_equals_predict_of_its_file(model):
    """Orientation and transparency are handled alike, and the caller's image stays unchanged."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    assert model.predict(opened).probabilities == model.predict(buffer.getvalue()).probabilities
    assert opened.size == (9, 6) and opened.mode == "RGBA"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"no image", "The image is not a supported image"),
        ("missing.png", "There is no file missing.png"),
        (RED.astype(np.float32), r"The image is float32 \(5, 7, 3\): expected uint8"),
        (RED[None], r"The image is uint8 \(1, 5, 7, 3\): expected uint8 \(height, width, 3\)"),
        (RED[:0], "expected uint8"),
        (None, "The image is NoneType: expected a path"),
        ([RED, RED[..., 0]], r"Image 2 is uint8 \(5, 7\)"),
        ([b"", RED], "Image 1 is empty"),
    ],
)
def test_predict_names_the_image_that_it_cannot_classify(model, source, message):
    with pytest.raises(ImageError, match=message):
        model.predict(source)


def test_a_loaded_version_predicts_like_the_network(registry, published):
    import torch

    images = published.splits.test.images
    for number, network in published.networks.items():
        model = open_version(registry, number)
        with torch.no_grad():
            expected = network.eval()(torch.from_numpy(np.stack(list(images)))).numpy()
        np.testing.assert_allclose(model.classifier.logits(images), expected, atol=1e-3)
        assert (model.model_name, model.version, model.name) == ("toy", number, f"toy version {number}")
        assert model.class_names == published.splits.class_names


def test_an_unknown_version_lists_the_existing_ones(registry):
    with pytest.raises(RegistryError, match="champion"):
        open_version(registry, "challenger")


def test_an_onnx_file_of_another_release_is_rejected(registry, monkeypatch, tmp_path):
    manifest = registry.pull(1)
    foreign = make_onnx(tmp_path / "model.onnx", manifest.class_names, release_id="another")
    monkeypatch.setattr(Manifest, "onnx_path", property(lambda self: foreign))
    with pytest.raises(ReleaseError, match="another release"):
        open_version(registry, 1)


def test_a_complete_release_stored_in_place_of_another_version_is_rejected_by_every_entry_point(
    registry, published, tmp_path, monkeypatch
):
    """Every file of version 2, hashes included, in the folder of version 1: only the registry's digest differs."""
    import mlflow

    one, two = (Path(registry.location(registry.show(n)).removeprefix("file://")) for n in (1, 2))
    original = shutil.copytree(one, published.folder / "original")
    try:
        shutil.rmtree(one)
        shutil.copytree(two, one)
        monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "empty"))
        with pytest.raises(ReleaseError, match="was changed"):
            mlflow.pyfunc.load_model("models:/toy/1")
        with pytest.raises(ReleaseError):
            open_version(registry, 1)
    finally:
        shutil.rmtree(one)
        shutil.move(original, one)


def test_a_folder_without_its_registry_is_verified_against_its_own_manifest_with_a_warning(registry, tmp_path):
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/toy/1", dst_path=str(tmp_path / "release")))
    assert (folder / "registered_model_meta").is_file()
    tracking.connect(f"sqlite:///{tmp_path}/empty.db")
    with pytest.warns(UserWarning, match="against its own release.json only"):
        assert open_folder(folder).name == "toy version 1"


def test_a_changed_file_is_rejected_before_it_is_opened(registry, tmp_path):
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/toy/1", dst_path=str(tmp_path)))
    assert open_folder(folder).version == 1
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ReleaseError, match="was changed"):
        open_folder(folder)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """An image, a text file, a missing file, another image."""
    paths = [tmp_path / name for name in ("red.png", "text.png", "none.png", "blue.jpg")]
    paths[0].write_bytes(make_image("red"))
    paths[1].write_text("no image")
    paths[3].write_bytes(make_image("blue", kind="JPEG"))
    return paths


def test_a_bad_file_gets_an_error_and_the_others_are_classified(model, files):
    rows = list(predict_files(model, files))
    assert [row.get("label") for row in rows] == ["red", None, None, "blue"]
    assert "text.png" in rows[1]["error"] and "none.png" in rows[2]["error"]
    assert set(rows[1]) == {"path", "error"}


def test_a_row_has_the_keys_of_every_entry_point_and_is_json(model, files):
    row = next(predict_files(model, files))
    assert list(row) == ["path", "label", "probabilities", "model", "version", "release_id", "timing"]
    assert (row["model"], row["version"], row["release_id"]) == ("colours", 7, "toy") and row["timing"]["total_ms"] > 0
    assert list(row["probabilities"]) == ["red", "green", "blue"]
    assert json.loads(json.dumps(row)) == row


def test_the_lines_of_the_table_are_aligned_with_the_heading(model, files):
    table = PredictionTable(model, files)
    lines = [table.heading(), *(table.line(row) for row in predict_files(model, files))]
    assert len(lines[0]) == len(lines[1]) == len(lines[4])
    assert lines[0].index("label") == lines[1].index("red  ")
    assert "text.png is not a supported image" in lines[2]


def test_control_characters_in_a_file_name_are_escaped(model):
    (row,) = predict_files(model, ["bad\x1b[31m.png"])
    assert "\x1b" not in row["path"] + row["error"]


def test_files_are_classified_one_by_one(model, files):
    rows = predict_files(model, iter(files))
    assert isinstance(rows, Iterator) and next(rows)["label"] == "red"
