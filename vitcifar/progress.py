"""Progress on the terminal: bars that vanish when their work is done, and lines that stay. Both go to stderr."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

FORMAT = "{desc} {bar} {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"
DELAY = 0.5  # seconds; shorter work shows no bar
_PRINTED: ContextVar[set[str] | None] = ContextVar("printed", default=None)


def bar(work: Iterable[Any] | None, title: str, unit: str, **options: Any) -> Any:
    """A bar of tqdm over `work`, which takes its options; none where stderr is not a terminal."""
    options = {"disable": None, "delay": DELAY, "bar_format": FORMAT, **options}
    return tqdm(work, desc=title, unit=f" {unit}", leave=False, dynamic_ncols=True, **options)


def notify(message: str) -> None:
    """Print a line that stays, above a bar."""
    tqdm.write(message, file=sys.stderr)


def notify_once(message: str) -> None:
    """As `notify`; inside of `several_runs`, unless an earlier run has printed it there."""
    printed = _PRINTED.get()
    if printed is None or message not in printed:
        notify(message)
    if printed is not None:
        printed.add(message)


@contextlib.contextmanager
def several_runs() -> Iterator[None]:
    """Inside the block, what runs have in common, such as the weights that they start from, is said by the first."""
    token = _PRINTED.set(set())
    try:
        yield
    finally:
        _PRINTED.reset(token)
