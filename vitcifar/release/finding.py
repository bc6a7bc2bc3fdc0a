"""Something in a registry that is not as it should be, and what repairs it."""

import dataclasses
from collections.abc import Callable
from typing import Any

WAIT = "wait for the process that works on it; if there is none: --settled-seconds 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be, and what repairs it."""

    kind: str
    subject: str
    sentence: str
    repair: str
    repaired: bool = False
    left_alone: bool = False  # nothing to do about it now
    act: Callable[[], Any] | None = dataclasses.field(default=None, repr=False, compare=False)  # None: for a person


def store_away(subject: str) -> Finding:
    return Finding(
        kind="store away",
        subject=subject,
        sentence="the store has no file of it, nor of any other version: its folder may not be mounted",
        repair="bring the folder back; what is lost for good can be deleted in MLflow",
    )
