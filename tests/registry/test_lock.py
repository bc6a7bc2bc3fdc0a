"""The queue on a server: one at a time, whoever was killed is not waited for, and nobody moves an alias too late."""

import concurrent.futures
import random
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from vitcifar.errors import RegistryError
from vitcifar.registry import lock


class SlowServer:
    """The tags of one model, behind requests that take up to 5 ms on their way and back."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self._lock = threading.Lock()

    def _request(self) -> Any:
        time.sleep(random.random() / 200)
        return self._lock

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        with self._request():
            self.tags[key] = value

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        with self._request():
            self.tags.pop(key, None)

    def get_registered_model(self, name: str) -> Any:
        with self._request():
            tags = dict(self.tags)
        time.sleep(random.random() / 200)
        return SimpleNamespace(tags=tags)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://server")
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.005)
    yield SimpleNamespace(client=SlowServer(), model_name="toy")


def test_of_ten_at_once_one_is_inside_at_a_time(registry: Any) -> None:
    inside: list[int] = []
    crowds: list[int] = []

    def enter(number: int) -> None:
        with lock.alone(registry) as check:
            inside.append(number)
            crowds.append(len(inside))
            time.sleep(0.002)
            check()
            inside.remove(number)

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        list(pool.map(enter, range(30)))
    assert crowds == [1] * 30
    assert registry.client.tags == {}


def test_a_killed_process_is_waited_for_until_its_lease_ends(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.3)
    dead = lock._Place(registry)
    dead.wait()
    assert next(lock.describe(value) for value in lock.places(registry).values()).startswith("process ")
    start = time.monotonic()
    with lock.alone(registry):
        assert time.monotonic() - start > 0.3
        assert list(registry.client.tags) != [dead.key] and len(registry.client.tags) == 1
    for too_late in (dead.check, dead._write):  # if it was only held up, and goes on
        with pytest.raises(RegistryError, match="The registry was too slow"):
            too_late()
    with pytest.raises(RegistryError, match="another process has the turn of this one"):
        dead._others()


@pytest.mark.parametrize("value", ["", "{}", '{"number": "x"}', "[1]"])
def test_what_is_no_place_is_waited_for_and_removed(registry: Any, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.1)
    registry.client.tags[f"{lock.PREFIX}odd"] = value
    assert lock.written(value) == 0 and lock.describe(value) == "an unknown process"
    with lock.alone(registry):
        assert f"{lock.PREFIX}odd" not in registry.client.tags


def test_a_process_that_waits_is_not_taken_for_dead(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first holds the lease for longer than a tag may stay unchanged, and renews it; so does the second."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    order: list[str] = []
    first = lock._Place(registry)
    first.wait()

    def enter(name: str) -> None:
        with lock.alone(registry):
            order.append(name)

    threads = [threading.Thread(target=enter, args=(name,)) for name in ("second", "third")]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for _ in range(15):
        first._write()
        time.sleep(0.1)
    assert order == []
    first.leave()
    for thread in threads:
        thread.join()
    assert order == ["second", "third"]


def test_a_process_that_was_held_up_moves_nothing(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock.alone(registry) as check:
        monkeypatch.setattr(lock, "LEASE_SECONDS", 0.06)
        time.sleep(0.05)
        with pytest.raises(RegistryError, match="The registry was too slow"):
            check()
    assert registry.client.tags == {}


def test_too_many_others_are_not_waited_for_for_ever(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "MAX_WAIT_SECONDS", 0.1)
    lock._Place(registry).wait()
    with pytest.raises(RegistryError, match="1 other processes are moving aliases of toy"), lock.alone(registry):
        pass
    assert len(registry.client.tags) == 1
