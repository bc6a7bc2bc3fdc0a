"""`vitcifar data audit` on folders: what it writes and says, and what it leaves out without weights."""

import csv

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.textures import textured_image

from vitcifar import cli
from vitcifar.cache import features_dir
from vitcifar.errors import TrainingError
from vitcifar.model import weights
from vitcifar.model.network import build_network
from vitcifar.presets import resolve
from vitcifar.training import feature_cache

CLASSES = ("<b>dog<b>", "猫")
COUNTS = ("--train-per-class", "0", "--validation-per-class", "2", "--test-per-class", "0")


def audit(*words):
    return CliRunner().invoke(cli.main, ["data", "audit", "--data", "folder", "--data-dir", "images", *words])


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder `images`: 8 training and 3 test images of each class, of which one is dark and one in both splits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    for part, count in (("train", 8), ("test", 3)):
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = textured_image(24, 24, seed=1000 * label + 100 * count + number)
                Image.fromarray(pixels).save(folder / part / name / f"<script>{number} 画像.png")
    dark = folder / "train" / CLASSES[0] / "dark.png"
    Image.fromarray((textured_image(24, 24, seed=7) * 0.15).astype(np.uint8)).save(dark)
    same = (folder / "train" / CLASSES[1] / "<script>0 画像.png").read_bytes()
    (folder / "test" / CLASSES[1] / "copy.png").write_bytes(same)
    return folder


def rows(folder):
    with (folder / "audit.csv").open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def test_without_weights_at_hand_the_audit_says_so_and_makes_all_other_checks(images, tmp_path, monkeypatch):
    def download(found, arch):
        raise TrainingError(f"The weights of {arch} could not be downloaded: type --weights none.")

    monkeypatch.setattr(weights, "download", download)
    result = audit(*COUNTS, "--out", "found")
    assert result.exit_code == 0, result.output
    note = "Note: Labels were not judged: that needs features of a network. The weights of vit_b_16 could not be"
    assert note in result.stderr and "type --weights none" in result.stderr
    assert "accuracy" not in result.stdout
    found = {(row["kind"], row["file"]) for row in rows(tmp_path / "found")}
    twins = {f"train/{CLASSES[1]}/<script>0 画像.png", f"test/{CLASSES[1]}/copy.png"}
    assert found == {("dark", f"train/{CLASSES[0]}/dark.png"), *(("identical", file) for file in twins)}
    page = (tmp_path / "found/audit.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<b>dog" not in page and "Labels were not judged" in page


def test_weights_that_were_asked_for_and_are_not_there_are_an_error(images, tmp_path):
    result = audit(*COUNTS, "--weights", "nowhere.pth")
    assert result.exit_code == 1 and "There is no file nowhere.pth with weights" in result.output
    assert not (tmp_path / "audit").exists()


def test_with_weights_none_labels_are_judged_by_the_pixels(images, tmp_path):
    bright = images / "train" / CLASSES[1] / "<script>3 画像.png"
    bright.write_bytes((images / "train" / CLASSES[0] / "<script>3 画像.png").read_bytes())
    result = audit(*COUNTS, "--weights", "none")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout and "audit/audit.html" in result.stdout
    assert "8 x 8 pixels" in (tmp_path / "audit/audit.html").read_text(encoding="utf-8")
    suggestions = [row["suggestion"] for row in rows(tmp_path / "audit") if row["kind"] == "identical"]
    assert sum("another class: keep the one whose class is right" in text for text in suggestions) == 2


def test_a_file_with_weights_gives_the_features_which_are_kept_for_the_next_time(images, tmp_path, monkeypatch):
    settings = ("--arch", "vit_tiny", "--weights", "own.pth")
    network = build_network(resolve("digits"), ("cat", "dog"))
    torch.save(network.backbone.state_dict(), "own.pth")
    result = audit(*COUNTS, *settings)
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout and "Labels were not judged" not in result.stderr
    assert "own.pth" in (tmp_path / "audit/audit.html").read_text(encoding="utf-8")
    assert len([*features_dir().glob("*.safetensors")]) == 3, "one file for each split"
    monkeypatch.setattr(feature_cache, "predict_embeddings", lambda *_, **__: pytest.fail("computed again"))
    assert audit(*COUNTS, *settings).stdout == result.stdout


def test_one_image_of_a_class_in_each_split_is_enough(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = ("--train-per-class", "1", "--validation-per-class", "1", "--test-per-class", "1")
    result = CliRunner().invoke(cli.main, ["data", "audit", "--preset", "digits", *one])
    assert result.exit_code == 0 and "accuracy" in result.stdout, result.output
    assert "train 1, validation 1, test 1" in (tmp_path / "audit/audit.html").read_text(encoding="utf-8")


def test_files_that_cannot_be_read_are_named_at_once_and_nothing_is_written(images, tmp_path):
    for name in CLASSES:
        (images / "train" / name / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    result = audit(*COUNTS, "--weights", "none")
    assert result.exit_code == 1 and result.output.count("broken.png") == 2
    assert not (tmp_path / "audit").exists()


def test_an_output_folder_that_cannot_be_written_is_said_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    result = audit("--out", "taken/audit")
    assert result.exit_code == 1 and "name another with --out" in result.output
