"""Folders that tests of many files start from: one worker makes them, the others copy them."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from filelock import FileLock


def make_once(name: str, factory: pytest.TempPathFactory, make: Callable[[Path], object]) -> Path:
    """A copy for this worker of a folder that the first worker which needs it makes; a store in it is its own."""
    place = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # of all workers
    made, complete = place / f"made-{name}", place / f"{name} is complete"
    with FileLock(place / f"{name}.lock"):
        if not complete.exists():
            made.mkdir()
            make(made)
            complete.touch()
    folder = Path(shutil.copytree(made, factory.mktemp(name), dirs_exist_ok=True))
    if (database := folder / "mlflow.db").exists():
        move_store(database, made)
    return folder


def move_store(database: Path, old: Path) -> None:
    """Replace the folder that a store was in by its own, wherever the store names it, as a path or in a URI."""
    folders = {quote(str(old)): quote(str(database.parent)), str(old): str(database.parent)}
    with contextlib.closing(sqlite3.connect(database)) as store, store:
        for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for _, column, kind, *_ in store.execute(f"PRAGMA table_info({table})").fetchall():
                if kind == "TEXT" or kind.startswith("VARCHAR"):
                    change = f'UPDATE {table} SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'
                    for before, after in folders.items():
                        store.execute(change, (before, after, before))
