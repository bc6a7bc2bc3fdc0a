"""The pool of loaded versions, over a registry that fails on demand."""

import concurrent.futures

import pytest
from support.serving import FakeRegistry, wait_until
from support.toys import make_image

from vitcifar.errors import RegistryError
from vitcifar.serving.model_pool import MAX_RECENT, ModelPool


def test_an_alias_that_moves_is_followed_and_reported(colours):
    pool = ModelPool(colours, "champion")
    assert pool.refresh().serial == 1, "nothing changed"
    colours.aliases["champion"] = 2
    state = pool.refresh()
    assert state.current.version == 2 and state.serial == 2
    assert "champion moved from version 1 to version 2" in state.moved
    assert pool.get("").version == pool.get("champion").version == 2


def test_an_alias_may_be_written_with_an_at_sign(colours):
    pool = ModelPool(colours, "@champion")
    colours.aliases["champion"] = 2
    state = pool.refresh()
    assert (state.current.version, state.problem) == (2, "")
    assert pool.spec == "champion" and pool.get("@champion").version == 2


def test_a_new_version_is_listed_but_not_served(colours):
    pool = ModelPool(colours, "champion")
    colours.numbers.append(3)
    state = pool.refresh()
    assert state.current.version == 1
    assert [version.number for version in state.versions] == [3, 2, 1]


def test_latest_follows_the_newest_version_and_a_number_does_not_move(colours):
    latest, pinned = ModelPool(colours, "latest"), ModelPool(colours, "1")
    colours.numbers.append(3)
    colours.aliases["champion"] = 3
    assert latest.refresh().current.version == 3
    assert pinned.refresh().current.version == 1


def test_a_broken_version_leaves_the_previous_one_serving_and_the_log_says_why(colours, caplog):
    pool = ModelPool(colours, "champion")
    colours.broken.add(2)
    colours.aliases["champion"] = 2
    state = pool.refresh()
    assert state.current.version == 1
    assert state.problem == ("champion points to version 2, which cannot be loaded. Version 1 is still serving.")
    assert "Version 2 was changed." in caplog.text
    num_tries = len(colours.pulled)
    assert pool.refresh().problem == state.problem and len(colours.pulled) == num_tries, "it is not tried again at once"
    colours.aliases["champion"] = 1
    assert pool.refresh().problem == ""


def test_a_removed_alias_or_an_unreachable_registry_leaves_the_previous_version_serving(colours, caplog):
    pool = ModelPool(colours, "champion")
    del colours.aliases["champion"]
    assert "no version champion any more" in pool.refresh().problem
    colours.unreachable = True
    state = pool.refresh()
    assert state.current.version == 1
    assert state.problem == "The registry cannot be read. Version 1 is still serving."
    pool.refresh()
    assert caplog.text.count("The registry is unreachable.") == 1
    assert pool.get("").version == 1


def test_an_unknown_version_at_the_start_raises_the_error_of_the_registry(colours):
    with pytest.raises(RegistryError, match="challenger"):
        ModelPool(colours, "challenger")


def test_a_selected_version_is_loaded_once_and_few_stay_in_memory(tmp_path):
    registry = FakeRegistry(tmp_path, tuple(range(1, 8)))
    pool = ModelPool(registry, "champion")
    for number in range(1, 8):
        assert pool.get(str(number)).version == number
        assert pool.get(f"v{number}").manifest.release_id == f"toy{number}"
    assert registry.pulled == list(range(1, 8))
    assert len(pool._recent) == MAX_RECENT
    assert pool.get("1") is pool.state.current and len(registry.pulled) == 7, "the current version stays"


def test_the_thread_refreshes_without_a_call(colours):
    pool = ModelPool(colours, "champion")
    pool.follow(0.02)
    colours.aliases["champion"] = 2
    wait_until(lambda: pool.state.current.version == 2, "the alias was not followed")
    assert pool.get("champion").version == 2
    pool.close()


def test_every_concurrent_prediction_is_of_one_version_while_the_alias_moves(colours):
    pool = ModelPool(colours, "champion")

    def predict(index: int) -> tuple[str, int | None]:
        if index == 20:
            colours.aliases["champion"] = 2
            pool.refresh()
        model = pool.get("")
        prediction = model.predict(make_image("blue"))
        assert prediction.release_id == model.manifest.release_id
        return prediction.label, model.version

    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        predictions = list(executor.map(predict, range(60)))
    assert {label for label, _ in predictions} == {"blue"}
    assert {version for _, version in predictions} == {1, 2}


def test_many_threads_that_select_one_version_load_it_once(colours):
    pool = ModelPool(colours, "champion")
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        models = list(executor.map(pool.get, ["2"] * 16))
    assert len({id(model) for model in models}) == 1 and colours.pulled == [1, 2]


def test_an_unknown_version_does_not_wait_for_the_registry(colours):
    pool = ModelPool(colours, "champion")
    colours.list = lambda: pytest.fail("the registry was asked")
    with pytest.raises(RegistryError, match=r"^colours had no version '9' when it was last read\.$"):
        pool.get("9")
    with pytest.raises(RegistryError, match=r"no version 'x{100}' when"):
        pool.get("x" * 2_000_000)
