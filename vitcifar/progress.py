"""Progress on the terminal: bars that vanish when their work is done, and lines that stay. Both go to stderr."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

FORMAT = "{desc} {bar} {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"
DELAY = 0.5  # seconds; shorter work shows no bar


def bar(work: Iterable[Any] | None, title: str, unit: str, **options: Any) -> Any:
    """A bar of tqdm over `work`, which takes its options; none where stderr is not a terminal."""
    options = {"disable": None, "delay": DELAY, "bar_format": FORMAT, **options}
    return tqdm(work, desc=title, unit=f" {unit}", leave=False, dynamic_ncols=True, **options)


def notify(message: str) -> None:
    """Print a line that stays, above a bar."""
    tqdm.write(message, file=sys.stderr)
