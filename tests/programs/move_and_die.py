"""Moves aliases in processes of their own, some of which end themselves with SIGKILL: move_and_die.py FOLDER URI.

The processes are forked before any of them opens the store, so one start serves all.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.releases import add_version

from vitcifar import tracking
from vitcifar.errors import RegistryError
from vitcifar.registry import aliases, doctor, prune, records, repair
from vitcifar.registry.registry import Registry


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def second_call_dies(function: Callable[..., object]) -> Callable[..., object]:
    calls: list[object] = []

    def call(*args: object, **more: object) -> object:
        calls.append(args)
        return die() if len(calls) == 2 else function(*args, **more)

    return call


def promote(registry: Registry) -> None:
    aliases.move_alias(registry, "champion", 2)


def roll_back(registry: Registry) -> None:
    registry.rollback(to=1, reason="slow")


def delete_oldest(registry: Registry) -> None:
    (old,) = prune.prune(registry, keep=1)
    prune.delete(registry, old)


def mend(registry: Registry) -> None:
    registry.client.set_registered_model_alias(registry.model_name, "champion", "3")
    registry.client.delete_model_version_tag(registry.model_name, "3", "release_digest")
    doctor.repair(registry, stale_seconds=0)


KILLS: dict[str, tuple[Callable[[Registry], None], Callable[[], object]]] = {
    "promote-before": (promote, lambda: setattr(aliases, "_set_alias", die)),
    "promote-after": (promote, lambda: setattr(records, "write", second_call_dies(records.write))),
    "rollback-before": (roll_back, lambda: setattr(aliases, "_set_alias", die)),
    "rollback-after": (roll_back, lambda: setattr(records, "write", second_call_dies(records.write))),
    "prune": (delete_oldest, lambda: setattr(mlflow.MlflowClient, "delete_model_version", die)),
    "doctor": (mend, lambda: setattr(aliases, "_set_alias", die)),
    "doctor-before": (mend, lambda: setattr(repair, "move_alias", die)),
}


def fork(function: Callable[[], object]) -> int:
    if process := os.fork():
        return process
    try:
        function()
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def set_up(folder: Path, uri: str) -> None:
    tracking.connect(uri)
    for name in [*KILLS, "ten"]:
        for release_id in ("one", "two", "three"):
            add_version(folder, release_id, name)
        for number in (1, 2, 1) if "rollback" in name else (2, 3) if name == "prune" else (1,):
            aliases.move_alias(Registry(name), "champion", number)
        if "rollback" in name:
            aliases.move_alias(Registry(name), "champion", 3)


def kill(name: str, uri: str) -> None:
    tracking.connect(uri)
    action, arm = KILLS[name]
    arm()
    action(Registry(name))


def move(expected: int, number: int, start: int, uri: str) -> None:
    tracking.connect(uri)
    os.read(start, 1)
    try:
        aliases.move_alias(Registry("ten"), "champion", number, expected=expected)
    except RegistryError:
        os._exit(3)


def main(folder: Path, uri: str) -> None:
    """Prints how each killed process ended, and how many of ten moves succeeded, in each of three rounds."""
    print("set-up", os.waitstatus_to_exitcode(os.waitpid(fork(lambda: set_up(folder, uri)), 0)[1]))
    for name in KILLS:
        print(name, os.waitstatus_to_exitcode(os.waitpid(fork(lambda name=name: kill(name, uri)), 0)[1]))
    for expected, numbers in ((1, (2, 2)), (2, (3, 3)), (3, (1, 2))):
        start, go = os.pipe()
        movers = [fork(lambda n=index % 2: move(expected, numbers[n], start, uri)) for index in range(10)]  # noqa: B023
        os.write(go, b"x" * 10)
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in movers]
        print("ten", codes.count(0), codes.count(3))


main(Path(sys.argv[1]), sys.argv[2])
