"""The registry, on a SQLite store and on a real tracking server with its artifact proxy: the same answers from both."""

import dataclasses
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from support.releases import store_release
from support.toys import stored

from vitcifar.errors import GateError, RegistryError, ReleaseError, VitCifarError
from vitcifar.registry.aliases import Event, move_alias, new_event, previous_holders, read_events
from vitcifar.registry.registry import Registry, check_alias, parse_uri, register
from vitcifar.release import cache
from vitcifar.release.cache import cache_dir
from vitcifar.release.manifest import read_manifest


@pytest.fixture
def toy(store: Path) -> Iterator[Registry]:
    """The registry of `toy`, without aliases or history."""
    registry = Registry("toy")
    yield registry
    model = registry.client.get_registered_model("toy")
    for alias in model.aliases:
        registry.client.delete_registered_model_alias("toy", alias)
    for key in model.tags:
        registry.client.delete_registered_model_tag("toy", key)
    shutil.rmtree(cache_dir(), ignore_errors=True)


def test_versions_are_listed_newest_first_with_their_aliases(toy: Registry) -> None:
    toy.move_alias("champion", 2)
    versions = toy.list()
    assert [version.number for version in versions] == [3, 2, 1]
    assert [version.aliases for version in versions] == [(), ("champion",), ()]
    assert versions[0].release_id == "three"
    assert versions[0].test_accuracy == 0.5


def test_a_version_is_named_by_number_alias_or_latest(toy: Registry) -> None:
    toy.move_alias("challenger", 2)
    assert [toy.resolve(spec) for spec in ("1", 1, "v1", "challenger", "latest")] == [1, 1, 1, 2, 3]


@pytest.mark.parametrize("spec", ["4", "0", "-1", "champion", "v9", "", "1.0", "٣"])
def test_an_unknown_version_is_answered_with_the_versions_there_are(toy: Registry, spec: str) -> None:
    toy.move_alias("challenger", 1)
    with pytest.raises(RegistryError, match=r"there are 1, 2, 3; aliases: challenger \(1\)"):
        toy.resolve(spec)


def test_an_unknown_model_is_answered_with_the_models_there_are(store: Path) -> None:
    for ask in (lambda r: r.show("1"), lambda r: r.aliases(), lambda r: r.history(), lambda r: r.promote(1)):
        with pytest.raises(RegistryError, match=r"There is no model 'nobody' .*there are: toy"):
            ask(Registry("nobody"))
    assert Registry("nobody").list() == []


def test_promotions_and_rollbacks_are_recorded_with_who_when_and_why(toy: Registry) -> None:
    toy.move_alias("champion", 1, reason="the first")
    toy.move_alias("champion", 2, reason="better by 3 points")
    toy.move_alias("champion", 3)
    toy.rollback(reason="slow on Mondays")
    assert toy.aliases() == {"champion": 2}
    moves = [(event.kind, event.before, event.after, event.reason) for event in toy.history("champion")]
    assert moves == [
        ("promote", None, 1, "the first"),
        ("promote", 1, 2, "better by 3 points"),
        ("promote", 2, 3, ""),
        ("rollback", 3, 2, "slow on Mondays"),
    ]
    assert all(event.who and event.when.endswith("Z") and event.done for event in toy.history())
    assert toy.rollback(reason="still slow").after == 1
    with pytest.raises(RegistryError, match="No version held 'champion' of toy before 1: type vitcifar promote"):
        toy.rollback(reason="slower still")
    assert toy.rollback(to=3, reason="it was not that").after == 3


def test_a_similar_alias_is_suggested(toy: Registry) -> None:
    toy.move_alias("champion", 2)
    assert toy.resolve("@champion") == 2
    with pytest.raises(RegistryError, match="Did you mean champion"):
        toy.resolve("chmapion")


def test_a_rollback_cannot_bypass_the_gates(toy: Registry) -> None:
    toy.move_alias("champion", 1)
    toy.move_alias("champion", 2)
    with pytest.raises(
        RegistryError,
        match=r"never held 'champion'; rollback cannot bypass the gates: type vitcifar promote 3 --alias champion",
    ):
        toy.rollback(to=3, reason="please")
    with pytest.raises(RegistryError, match="needs a reason"):
        toy.rollback(reason=" ")
    assert toy.aliases() == {"champion": 2}


def test_an_alias_that_was_moved_concurrently_is_not_moved(toy: Registry) -> None:
    toy.move_alias("champion", 1)
    with pytest.raises(
        RegistryError, match=r"was moved concurrently \(from 3 to 1\): see `vitcifar history` and try again"
    ):
        move_alias(toy, "champion", 2, expected=3)
    assert toy.aliases() == {"champion": 1}
    assert move_alias(toy, "champion", 2, expected=1).after == 2


def test_deleting_a_version_keeps_what_another_one_is_made_of(toy: Registry, store: Path) -> None:
    model, digest = store_release(store, "shared", "shared")
    release = read_manifest(store / "shared" / "release.json")
    first, second = (register(release, model.model_id, digest) for _ in range(2))
    registry = Registry("shared")
    registry.move_alias("champion", second)
    registry.delete(registry.show(first))
    assert registry.client.get_logged_model(model.model_id)
    with pytest.raises(RegistryError, match="is not deleted: champion points to it now"):
        registry.delete(registry.show(second))


def test_promoting_the_holder_again_records_nothing(toy: Registry) -> None:
    toy.move_alias("champion", 1)
    toy.move_alias("champion", 1)
    assert len(toy.history()) == 1


def test_each_alias_has_a_history_of_its_own(toy: Registry) -> None:
    toy.move_alias("champion", 1)
    toy.move_alias("challenger", 2)
    assert [event.after for event in toy.history("challenger")] == [2]
    assert [event.after for event in toy.history()] == [1, 2]


def test_concurrent_promotions_lose_no_record(toy: Registry) -> None:
    moved: list[Event] = []

    def promote(number: int) -> None:
        for _ in range(3):
            try:
                event = toy.move_alias("champion", number)
                if event.before != number:
                    moved.append(event)
            except RegistryError as error:
                assert "was moved concurrently" in str(error)

    threads = [threading.Thread(target=promote, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert moved and all(event in toy.history() for event in moved)
    assert all(event.done for event in toy.history())
    assert toy.aliases()["champion"] in (1, 2, 3)


def test_pull_downloads_a_release_once(toy: Registry) -> None:
    release = toy.pull("latest")
    assert (release.version, release.release_id) == (3, "three")
    assert release.onnx_path.is_file()
    assert not release.path("data/model.pt2").exists()
    inode = release.onnx_path.stat().st_ino
    assert toy.pull(3).onnx_path.stat().st_ino == inode
    assert toy.pull(3, pytorch=True).path("data/model.pt2").is_file()
    assert Registry.pull_uri("models:/toy/3").release_id == "three"


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
        with pytest.raises(ReleaseError, match=r"model\.onnx in the store was changed after it was registered"):
            toy.pull(2)
        path.unlink()
        with pytest.raises(ReleaseError, match=r"does not hold model\.onnx"):
            toy.pull(2)
        with pytest.raises(
            GateError,
            match=r"toy 2 is incomplete \(missing or changed.*model\.onnx\): run `vitcifar doctor`.*cannot be forced",
        ):
            toy.promote(2)
        assert toy.aliases() == {}
    finally:
        path.write_bytes(content)
    toy.pull(2)


@pytest.mark.parametrize("alias", ["latest", "3", "v3", "V12", "", "a b", "a/b", "@", "x" * 101])
def test_reserved_and_invalid_aliases_are_rejected(alias: str) -> None:
    with pytest.raises(RegistryError, match="is not a valid alias"):
        check_alias(alias)


@pytest.mark.parametrize("name", ["", " a", "a/b", "a'b", "a:b", "x" * 201])
def test_invalid_model_names_are_rejected(name: str) -> None:
    with pytest.raises(RegistryError, match="is not a valid model name"):
        Registry(name)


def test_a_models_uri_is_parsed() -> None:
    assert parse_uri("models:/vitcifar/3") == ("vitcifar", "3")
    assert parse_uri("models:/vit cifar@champion") == ("vit cifar", "champion")
    for wrong in ("models:/vitcifar", "vitcifar/3", "models:/a/b/c", "runs:/a/b"):
        with pytest.raises(RegistryError, match="not the URI of a version"):
            parse_uri(wrong)


def test_an_unreachable_server_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(VitCifarError, match=r"The tracking store http://127.0.0.1:9 cannot be used"):
            Registry("toy").list()
    finally:
        mlflow.set_tracking_uri(before)


def done(kind: str, before: int | None, after: int) -> Event:
    return dataclasses.replace(new_event("champion", before, after, kind, ""), done=True)


def test_previous_holders_follow_promotions_and_rollbacks() -> None:
    events = [done("promote", None, 1), done("promote", 1, 2), done("promote", 2, 3)]
    assert previous_holders(events, 3) == [1, 2]
    events.append(done("rollback", 3, 2))
    assert previous_holders(events, 2) == [1]
    events.append(done("promote", 2, 4))
    assert previous_holders(events, 4) == [1, 2]
    assert previous_holders(events, 7) == [1, 2, 4]  # moved with another tool since
    events = [done("promote", before, after) for before, after in ((None, 1), (1, 2), (2, 1), (1, 3))]
    assert previous_holders([*events, done("rollback", 3, 1)], 1) == [1, 2]  # 1 held it before and after 2
    assert previous_holders([new_event("champion", 1, 2, "promote", "")], 1) == []  # never came to it


def test_tags_of_other_tools_are_not_read_as_history() -> None:
    assert read_events({"history/x": "{}", "history/y": "?", "note": "history/"}) == []
