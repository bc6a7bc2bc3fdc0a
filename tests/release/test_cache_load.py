"""Loading the network of a release from its pt2: the same weights, and never a pickle."""

import io
import zipfile
from typing import Any

import pytest
import torch

from vitcifar.errors import ReleaseError
from vitcifar.release.cache import open_network, release_weights


def test_training_can_start_from_the_weights_of_a_version(registry: Any, published: Any) -> None:
    weights = release_weights(registry.pull("champion", pytorch=True))
    expected = published.networks[1].state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_a_pt2_that_contains_a_pickle_or_is_of_a_newer_torch_is_not_loaded(registry: Any) -> None:
    release = registry.pull(1, pytorch=True)
    path = release.path("data/model.pt2")
    content = path.read_bytes()
    try:
        torch.save({"network": torch.nn.Linear(1, 1)}, path)
        with pytest.raises(ReleaseError, match="are not plain tensors"):
            release_weights(release)
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, b"99" if name.endswith("archive_version") else old.read(name))
        with pytest.raises(ReleaseError, match=r"cannot be loaded here \(Saved archive version 99 .*\): install"):
            release_weights(release)
    finally:
        path.write_bytes(content)


def test_the_network_of_a_release_is_rebuilt_with_its_weights(registry: Any, published: Any) -> None:
    rebuilt = open_network(registry.pull(1, pytorch=True))
    expected = published.networks[1].state_dict()
    assert not rebuilt.training
    assert all(torch.equal(tensor, expected[name]) for name, tensor in rebuilt.state_dict().items())
