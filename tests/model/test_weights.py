"""The weights that training starts from."""

import pytest

from vitcifar.config import resolve
from vitcifar.errors import ConfigError, TrainingError
from vitcifar.model import weights
from vitcifar.model.network import check_network
from vitcifar.model.weights import check_weights


def test_weights_are_checked_without_loading_them(tmp_path, monkeypatch):
    file = tmp_path / "mine.pt"
    file.write_bytes(b"not read")
    monkeypatch.setattr(weights.torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vit_b_16-c867db91.pth").write_bytes(b"not read")
    for name in ("none", "models:/vitcifar/1", str(file), "IMAGENET1K_V1"):
        check_weights("vit_b_16", name)
    with pytest.raises(TrainingError, match="There is no file"):
        check_weights("vit_b_16", str(tmp_path / "other.pt"))
    with pytest.raises(ConfigError, match="There are no weights 'V9' for vit_b_16"):
        check_weights("vit_b_16", "V9")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"train_layers": "9"}, "but there are 3 blocks"),
        ({"image_size": 33}, "needs a multiple of 8"),
        ({"weights": "V9"}, "There are no trained weights"),
    ],
)
def test_a_network_that_cannot_be_built_is_an_error_without_building_it(setting, message):
    with pytest.raises(ConfigError, match=message):
        check_network(resolve("digits", **setting), ("a", "b"))
    check_network(resolve("digits"), ("a", "b"))
