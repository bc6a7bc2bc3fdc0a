"""The reference embeddings of a release: of test images, by the file that serves; none in older releases."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.old_release import write_old_release

from vitcifar.errors import ReleaseError
from vitcifar.inference.session import OnnxClassifier
from vitcifar.model.predict import predict_embeddings
from vitcifar.release import reference
from vitcifar.release.manifest import read_manifest
from vitcifar.release.reference import REFERENCE_FILE, choose_reference, embed, read_reference, write_reference


def test_a_release_holds_the_embeddings_of_its_test_images(registry, published):
    release = registry.pull(1)
    stored, images = read_reference(release), published.splits.test.images
    assert stored is not None and stored.dtype == np.float16 and REFERENCE_FILE in release.files
    expected = predict_embeddings(published.networks[1], images)
    np.testing.assert_allclose(stored, expected[choose_reference(len(images))], atol=2e-3)
    np.testing.assert_allclose(embed(release.onnx_path, images), expected, atol=1e-4)
    assert OnnxClassifier(release.onnx_path).embedding_size == expected.shape[1]


def test_the_reference_is_bounded_and_always_of_the_same_images(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "MAX_REFERENCE", 7)
    write_reference(tmp_path, np.arange(40.0).reshape(20, 2))
    rows = np.load(tmp_path / REFERENCE_FILE)
    assert rows.shape == (7, 2) and (rows[:, 0] / 2 == choose_reference(20)).all()


def test_an_older_release_has_none(tmp_path, toy_onnx):
    write_old_release(tmp_path / "old")
    assert read_reference(read_manifest(tmp_path / "old" / "release.json")) is None
    logits, none = OnnxClassifier(toy_onnx).logits_and_embeddings([np.zeros((4, 4, 3), np.uint8)])
    assert logits.shape == (1, 3) and none.shape == (1, 0)
    write_reference(tmp_path, none)
    assert not (tmp_path / REFERENCE_FILE).exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY garbage", np.zeros(3, np.float16), np.zeros((2, 2), object)])
def test_a_damaged_reference_is_one_sentence(tmp_path: Path, registry, content):
    if isinstance(content, bytes):
        (tmp_path / REFERENCE_FILE).write_bytes(content)
    else:
        np.save(tmp_path / REFERENCE_FILE, content, allow_pickle=True)
    release = dataclasses.replace(registry.pull(1), folder=tmp_path)
    with pytest.raises(ReleaseError, match=r"reference_embeddings\.npy"):
        read_reference(release)
