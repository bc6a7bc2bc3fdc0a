"""Aliases: their names, moves, rollbacks and history, with the same results from each kind of store."""

import concurrent.futures
import dataclasses
import threading

import pytest

from vitcifar.errors import RegistryError
from vitcifar.registry import lock
from vitcifar.registry.aliases import (
    Event,
    check_alias,
    move_alias,
    new_event,
    parse_uri,
    previous_holders,
    read_events,
)
from vitcifar.registry.registry import Registry


def test_promotions_and_rollbacks_are_recorded_with_who_when_and_why(toy: Registry) -> None:
    move_alias(toy, "champion", 1, reason="the first")
    move_alias(toy, "champion", 2, reason="better by 3 points")
    move_alias(toy, "champion", 3)
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


def test_a_rollback_cannot_bypass_the_gates(toy: Registry) -> None:
    move_alias(toy, "champion", 1)
    move_alias(toy, "champion", 2)
    with pytest.raises(
        RegistryError,
        match=r"never held 'champion'; rollback cannot .*: type vitcifar promote 3 --alias champion --model-name toy",
    ):
        toy.rollback(to=3, reason="please")
    with pytest.raises(RegistryError, match="needs a reason"):
        toy.rollback(reason=" ")
    assert toy.aliases() == {"champion": 2}


def test_an_alias_that_was_moved_concurrently_is_not_moved(toy: Registry) -> None:
    move_alias(toy, "champion", 1)
    with pytest.raises(
        RegistryError, match=r"was moved concurrently \(from 3 to 1\): see `vitcifar history --model-name toy` and try"
    ):
        move_alias(toy, "champion", 2, expected=3)
    assert toy.aliases() == {"champion": 1}
    assert move_alias(toy, "champion", 2, expected=1).after == 2


def test_promoting_the_holder_again_records_nothing(toy: Registry) -> None:
    move_alias(toy, "champion", 1)
    move_alias(toy, "champion", 1)
    assert len(toy.history()) == 1


def test_each_alias_has_a_history_of_its_own(toy: Registry) -> None:
    move_alias(toy, "champion", 1)
    move_alias(toy, "challenger", 2)
    assert [event.after for event in toy.history("challenger")] == [2]
    assert [event.after for event in toy.history()] == [1, 2]


def test_concurrent_promotions_lose_no_record(toy: Registry) -> None:
    moved: list[Event] = []

    def promote(number: int) -> None:
        for _ in range(3):
            try:
                event = move_alias(toy, "champion", number)
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


def test_of_ten_moves_from_one_state_one_succeeds_and_the_history_has_no_gap(toy: Registry) -> None:
    """By a lock beside the SQLite file, and by a lease on a server, which leaves no tag."""
    start = threading.Barrier(10)

    def promote(number: int, expected: int | None) -> bool:
        start.wait()
        try:
            return move_alias(toy, "champion", number, expected=expected).before == expected
        except RegistryError:
            return False

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        for _ in range(2):
            expected = toy.aliases().get("champion")
            others = [number for number in (1, 2, 3) if number != expected]
            won = pool.map(promote, 5 * others[:2], 10 * [expected])
            assert sum(won) == 1
    first, second = toy.history()
    assert (first.before, first.after, second.after) == (None, second.before, toy.aliases()["champion"])
    assert lock.places(toy) == {}


@pytest.mark.parametrize("alias", ["latest", "3", "v3", "V12", "", "a b", "a/b", "@", "x" * 101])
def test_reserved_and_invalid_aliases_are_rejected(alias: str) -> None:
    with pytest.raises(RegistryError, match="is not a valid alias"):
        check_alias(alias)


@pytest.mark.parametrize("name", ["", " a", "a/b", "a'b", "a:b"])
def test_invalid_model_names_are_rejected(name: str) -> None:
    with pytest.raises(RegistryError, match="is not a valid model name"):
        Registry(name)


def test_a_long_model_name_is_refused_for_its_length() -> None:
    with pytest.raises(RegistryError, match="model's name has 600 characters: type --model-name with at most 200"):
        Registry("x" * 600)


def test_a_models_uri_is_parsed() -> None:
    assert parse_uri("models:/vitcifar/3") == ("vitcifar", "3")
    assert parse_uri("models:/vit cifar@champion") == ("vit cifar", "champion")
    for wrong in ("models:/vitcifar", "vitcifar/3", "models:/a/b/c", "runs:/a/b"):
        with pytest.raises(RegistryError, match="not the URI of a version"):
            parse_uri(wrong)


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
    assert previous_holders([new_event("champion", 1, 2, "promote", "")], 1) == []  # never moved


def test_tags_of_other_tools_are_not_read_as_history() -> None:
    assert read_events({"history/x": "{}", "history/y": "?", "note": "history/"}) == {}
