"""Initial weights: from files, releases and torchvision."""

from pathlib import Path

import pytest
import torch
from support.networks import CLASSES, random_images, tiny

from vitcifar.config import resolve
from vitcifar.errors import ConfigError, TrainingError
from vitcifar.model import vit
from vitcifar.model.network import build_network, check_network, weights_sha256
from vitcifar.model.vit import check_weights, download


def test_a_state_dict_from_a_file_restores_the_network(tmp_path):
    network = tiny(seed=5)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    again = build_network(resolve("digits", weights=str(tmp_path / "weights.pt")), CLASSES)
    assert weights_sha256(again) == weights_sha256(network)


def test_torchvisions_keys_are_renamed_and_replacing_a_head_is_reported(tmp_path):
    source = tiny(seed=5)
    state = {name.removeprefix("backbone."): value for name, value in source.backbone.named_parameters(prefix="")}
    torch.save({**state, "heads.head.weight": torch.ones(9, 96), "heads.head.bias": torch.ones(9)}, tmp_path / "w.pt")
    messages: list[str] = []
    config = resolve("digits", weights=str(tmp_path / "w.pt"))
    network = build_network(config, CLASSES, notify=messages.append)
    assert torch.equal(network.backbone.class_token, source.backbone.class_token)
    assert network.head.weight.shape == (3, 96)
    assert "of 9 classes" in messages[0] and "of 3 classes" in messages[0]


def test_the_position_embedding_is_interpolated_to_another_image_size(tmp_path):
    torch.save(tiny(seed=5).state_dict(), tmp_path / "w.pt")
    messages: list[str] = []
    network = build_network(
        resolve("digits", weights=str(tmp_path / "w.pt"), image_size=64), CLASSES, notify=messages.append
    )
    assert network(torch.from_numpy(random_images(2, 64, 64))).shape == (2, 3)
    assert messages == ["The position embedding of 4 x 4 patches is interpolated to 8 x 8."]


def test_weights_of_a_release_start_with_a_new_temperature():
    source = tiny(seed=5)
    source.temperature.fill_(3.0)
    requested: list[str] = []

    def load_release(name: str):
        requested.append(name)
        return source.state_dict()

    network = build_network(resolve("digits", weights="models:/vitcifar/3"), CLASSES, load_release=load_release)
    assert requested == ["models:/vitcifar/3"]
    assert torch.equal(network.head.weight, source.head.weight)
    assert network.temperature == 1.0


def test_wrong_shapes_say_expected_and_got(tmp_path):
    state = tiny().state_dict()
    torch.save({**state, "backbone.class_token": torch.zeros(1, 1, 7)}, tmp_path / "w.pt")
    with pytest.raises(TrainingError, match=r"class_token: expected \(1, 1, 96\), got \(1, 1, 7\)"):
        tiny(weights=str(tmp_path / "w.pt"))


def test_missing_and_unexpected_weights_are_named(tmp_path):
    state = tiny().state_dict()
    torch.save({**state, "extra": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(TrainingError, match=r"extra: expected nothing, got \(2,\)"):
        tiny(weights=str(tmp_path / "w.pt"))
    del state["backbone.class_token"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(TrainingError, match=r"class_token: expected \(1, 1, 96\), got nothing"):
        tiny(weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut off"])
def test_a_broken_weights_file_is_an_error_that_names_the_cause(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(TrainingError, match="cannot be read as a state dict"):
        tiny(weights=str(tmp_path / "w.pt"))


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_weights_file_is_not_run(tmp_path):
    torch.save({"head.weight": Evil(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(TrainingError):
        tiny(weights=str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()


class Unreachable:
    """Weights whose host refuses the connection: nothing listens on port 9."""

    name = "IMAGENET1K_V1"
    url = "http://127.0.0.1:9/vit_b_16-c867db91.pth"


def test_weights_that_cannot_be_downloaded_say_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(TrainingError) as caught:
        download(Unreachable, "vit_b_16")  # type: ignore[arg-type]
    assert "could not be downloaded from" in str(caught.value)
    assert "--preset digits, --weights none, or put the file at" in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / "vit_b_16-c867db91.pth") in str(caught.value)


def test_weights_in_torch_hubs_cache_are_used_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints" / "vit_b_16-c867db91.pth"
    cache.parent.mkdir(parents=True)
    torch.save({"class_token": torch.ones(1)}, cache)
    assert download(Unreachable, "vit_b_16") == {"class_token": torch.ones(1)}  # type: ignore[arg-type]


def test_weights_are_checked_without_loading_them(tmp_path, monkeypatch):
    file = tmp_path / "mine.pt"
    file.write_bytes(b"not read")
    monkeypatch.setattr(vit.torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vit_b_16-c867db91.pth").write_bytes(b"not read")
    for name in ("none", "models:/vitcifar/1", str(file), "IMAGENET1K_V1"):
        check_weights("vit_b_16", name)
    with pytest.raises(TrainingError, match="There is no file"):
        check_weights("vit_b_16", str(tmp_path / "other.pt"))
    with pytest.raises(ConfigError, match="There are no pretrained weights 'V9' for vit_b_16"):
        check_weights("vit_b_16", "V9")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"train_layers": "9"}, "but there are 3 blocks"),
        ({"image_size": 33}, "needs a multiple of 8"),
        ({"weights": "V9"}, "There are no pretrained weights"),
    ],
)
def test_a_network_that_cannot_be_built_is_an_error_without_building_it(setting, message):
    with pytest.raises(ConfigError, match=message):
        check_network(resolve("digits", **setting), ("a", "b"))
    check_network(resolve("digits"), ("a", "b"))
