"""The cache of releases: complete or absent, every byte hashed at most twice, nothing changed passes."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.releases import make_release

from vitcifar.cache import cache_dir
from vitcifar.errors import ReleaseError
from vitcifar.release import manifest
from vitcifar.release.cache import fetch
from vitcifar.release.manifest import sha256_of


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release in a store on this machine; an empty cache."""
    make_release(tmp_path / "stored")
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "stored"


def get(stored: Path, digest: str = "", *, pytorch: bool = False) -> manifest.Manifest:
    return fetch(stored.as_uri(), digest or sha256_of(stored / "release.json"), pytorch=pytorch)


def test_a_download_hashes_every_file_once_and_the_manifest_twice(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, hashed = sha256_of(stored / "release.json"), Counter[str]()
    monkeypatch.setattr(manifest, "sha256_of", lambda path: hashed.update([path.name]) or sha256_of(path))
    release = get(stored, digest, pytorch=True)
    assert hashed == {"release.json": 2, "model.onnx": 1, "MLmodel": 1, "model.pt2": 1}
    assert release.folder == cache_dir() / "releases" / digest
    assert release.path("data/model.pt2").is_file()


def test_the_pt2_is_downloaded_only_on_request(stored: Path) -> None:
    assert not get(stored).path("data/model.pt2").exists()
    assert get(stored, pytorch=True).path("data/model.pt2").exists()
    assert get(stored).path("data/model.pt2").exists()  # it stays


def test_a_release_in_the_cache_needs_no_store_and_a_changed_one_is_downloaded_again(stored: Path) -> None:
    digest, release = sha256_of(stored / "release.json"), get(stored)
    stored.rename(stored.with_name("unavailable"))
    assert get(stored, digest).onnx_path.is_file()
    stored.with_name("unavailable").rename(stored)
    release.onnx_path.write_bytes(b"changed")
    assert get(stored, digest).onnx_path.read_bytes() == (stored / "model.onnx").read_bytes()


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("model.onnx", append, r"model\.onnx in the store was changed after it was registered.*vitcifar doctor"),
        ("release.json", append, r"release\.json in the store was changed after it was registered"),
        ("data/model.pt2", append, r"data/model\.pt2 in the store was changed"),
        ("model.onnx", Path.unlink, r"does not hold model\.onnx"),
    ],
)
def test_a_stored_release_with_a_changed_or_missing_file_leaves_nothing_in_the_cache(
    stored: Path, name: str, change: Callable[[Path], None], sentence: str
) -> None:
    digest = sha256_of(stored / "release.json")
    change(stored / name)
    with pytest.raises(ReleaseError, match=sentence):
        get(stored, digest, pytorch=True)
    left = [path for path in (cache_dir() / "releases").rglob("*") if path.name == Path(name).name]
    assert left == []
