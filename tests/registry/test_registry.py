"""The registry: the same results from a SQLite store and from a tracking server with its artifact proxy."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import mlflow
import pytest
from support.disk import fill
from support.toys import stored

from vitcifar.cache import cache_dir
from vitcifar.errors import GateError, RegistryError, ReleaseError, TrackingError, VitCifarError
from vitcifar.registry.aliases import move_alias
from vitcifar.registry.registry import Registry
from vitcifar.release import cache
from vitcifar.release.artifacts import find_mismatch
from vitcifar.serving.loaded_model import open_version


class CountingClient:
    """MLflow's client, which counts the requests by name."""

    def __init__(self, client: mlflow.MlflowClient) -> None:
        self.client = client
        self.requests: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.requests.append(name)
        return getattr(self.client, name)

    @property
    def num_reads(self) -> int:
        return sum(name.startswith(("get_", "search_")) for name in self.requests)


def count_requests(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> CountingClient:
    client = CountingClient(registry.client)
    monkeypatch.setattr(registry, "client", client)
    return client


def test_opening_a_version_reads_the_store_at_most_four_times(toy: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    client = count_requests(toy, monkeypatch)
    assert open_version(toy, "latest").version == 3
    assert len(client.requests) == client.num_reads <= 4


def test_a_rollback_reads_the_store_at_most_nine_times(toy: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    move_alias(toy, "champion", 1)
    move_alias(toy, "champion", 2)
    client = count_requests(toy, monkeypatch)
    assert toy.rollback(reason="slow").after == 1
    assert client.num_reads <= 9
    assert len(client.requests) - client.num_reads <= 7


def test_versions_are_listed_newest_first_with_their_aliases(toy: Registry) -> None:
    move_alias(toy, "champion", 2)
    versions = toy.list()
    assert [version.number for version in versions] == [3, 2, 1]
    assert [version.aliases for version in versions] == [(), ("champion",), ()]
    assert [toy.manifest(version).release_id for version in versions] == ["three", "two", "one"]
    assert toy.accuracy(versions[0]) == 0.5


def test_a_version_is_named_by_number_alias_or_latest(toy: Registry) -> None:
    move_alias(toy, "challenger", 2)
    assert [toy.resolve(spec) for spec in ("1", 1, "v1", "challenger", "latest")] == [1, 1, 1, 2, 3]


@pytest.mark.parametrize("spec", ["4", "0", "-1", "champion", "v9", "", "1.0", "٣"])
def test_an_unknown_version_is_answered_with_the_versions_there_are(toy: Registry, spec: str) -> None:
    move_alias(toy, "challenger", 1)
    with pytest.raises(RegistryError, match=r"there are 1, 2, 3; aliases: challenger \(1\)"):
        toy.resolve(spec)


def test_an_unknown_model_is_answered_with_the_models_there_are(store: Path) -> None:
    for ask in (lambda r: r.show("1"), lambda r: r.aliases(), lambda r: r.history(), lambda r: r.promote(1)):
        with pytest.raises(RegistryError, match=r"There is no model 'nobody' .*there are: toy"):
            ask(Registry("nobody"))
    assert Registry("nobody").list() == []


def test_a_similar_alias_is_suggested(toy: Registry) -> None:
    move_alias(toy, "champion", 2)
    assert toy.resolve("@champion") == 2
    with pytest.raises(RegistryError, match="Did you mean champion"):
        toy.resolve("chmapion")


def test_pull_downloads_a_release_once(toy: Registry) -> None:
    release = toy.pull("latest")
    assert (release.version, release.release_id) == (3, "three")
    assert release.onnx_path.is_file()
    assert not release.path("data/model.pt2").exists()
    inode = release.onnx_path.stat().st_ino
    assert toy.pull(3).onnx_path.stat().st_ino == inode
    assert toy.pull(3, pytorch=True).path("data/model.pt2").is_file()


def test_a_changed_release_in_the_cache_is_downloaded_again(toy: Registry) -> None:
    release = toy.pull(1)
    release.onnx_path.write_bytes(b"")
    assert toy.pull(1).onnx_path.stat().st_size > 0
    os.link(release.onnx_path, release.onnx_path.with_name("second-name"))
    toy.pull(1)
    assert release.onnx_path.stat().st_nlink == 1


def test_an_interrupted_pull_leaves_nothing_in_the_cache(toy: Registry, monkeypatch: pytest.MonkeyPatch) -> None:

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "verify", die)
    with pytest.raises(KeyboardInterrupt):
        toy.pull(2)
    assert list((cache_dir() / "releases").iterdir()) == []


def test_a_full_disk_of_the_cache_is_named_and_with_room_the_next_pull_completes(
    toy: Registry, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    monkeypatch.setenv("VITCIFAR_CACHE", str(small_disk / "cache"))
    fill(small_disk)
    for attempt in (lambda: toy.pull(1), lambda: open_version(toy, "1")):
        with pytest.raises(ReleaseError) as raised:
            attempt()
        place = f"cannot be written to {small_disk}/cache/releases (No space left on device): free disk space, or set"
        assert place in str(raised.value) and "\n" not in str(raised.value)
    (small_disk / "ballast").unlink()
    assert toy.pull(1).onnx_path.is_file()
    assert len(list((small_disk / "cache" / "releases").iterdir())) == 1, "nothing is left of the attempts"


def test_a_full_disk_while_files_are_compared_is_not_said_to_be_the_store(
    toy: Registry, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    version = toy.show(1)
    fill(small_disk)
    with pytest.raises(TrackingError, match=rf"cannot be written to {small_disk}/pulled-\w+ \(No space left.*TMPDIR"):
        find_mismatch(toy.location(version), toy.digest_of(version))


def test_pull_says_when_the_cache_cannot_be_written(toy: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = cache_dir().parent / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("VITCIFAR_CACHE", str(blocked))
    with pytest.raises(ReleaseError, match="VITCIFAR_CACHE"):
        toy.pull(1)


def test_a_version_that_is_not_ours_is_neither_pulled_nor_promoted(toy: Registry) -> None:
    entry = toy.show(3)
    toy.client.delete_model_version_tag("toy", "3", "release_digest")
    try:
        for act in (toy.pull, toy.promote):
            with pytest.raises(ReleaseError, match="was not released by vitcifar"):
                act(3)
        assert toy.aliases() == {}
    finally:
        toy.client.set_model_version_tag("toy", "3", "release_digest", str(entry.digest))


def test_a_release_with_a_changed_or_missing_file_is_rejected(toy: Registry, store: Path) -> None:
    path = stored(toy, 2, store) / "model.onnx"
    content = path.read_bytes()
    try:
        path.write_bytes(content.replace(b"colours", b"coloured"[:7]))
        with pytest.raises(ReleaseError, match=r"model\.onnx.*changed"):
            toy.pull(2)
        path.unlink()
        with pytest.raises(ReleaseError, match=r"model\.onnx"):
            toy.pull(2)
        with pytest.raises(
            GateError,
            match=r"toy 2 is incomplete \(.*model\.onnx\): run `vitcifar doctor --model-name toy`.*cannot be forced",
        ):
            toy.promote(2)
        assert toy.aliases() == {}
    finally:
        path.write_bytes(content)
    toy.pull(2)


def test_an_unreachable_server_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(VitCifarError, match=r"The tracking store http://127.0.0.1:9 cannot be used"):
            Registry("toy").list()
    finally:
        mlflow.set_tracking_uri(before)


def test_the_accuracy_of_a_version_is_read_from_its_release_and_cached(toy: Registry) -> None:
    toy.tag(3, "test_accuracy", "0.99")
    version = toy.show(3)
    assert toy.accuracy(version) == 0.5
    assert [path.name for path in cache_dir().rglob("*") if path.is_file()] == ["release.json"]
    gone = dataclasses.replace(version, source="nowhere", number=99)  # not read from the store again
    assert toy.accuracy(gone) == 0.5
    assert toy.accuracy(dataclasses.replace(version, tags={"test_accuracy": "0.99"})) is None
    toy.tag(3, "test_accuracy", "0.5")


def test_a_digest_that_is_a_path_touches_no_folder(toy: Registry, tmp_path: Path) -> None:
    """The digest names a folder of the cache, and an incomplete one is deleted there."""
    (tmp_path / "mine").write_text("mine")
    version = dataclasses.replace(toy.show(1), tags={"release_digest": str(tmp_path)})
    with pytest.raises(ReleaseError, match=r"no valid tag release_digest"):
        toy.pull_version(version)
    assert (tmp_path / "mine").read_text() == "mine"
