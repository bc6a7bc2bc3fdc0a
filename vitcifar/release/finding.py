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


def store_away(subject: str, place: str) -> Finding:
    """A release of which the store has nothing, while nothing shows that the store itself is there."""
    return Finding(
        kind="store away",
        subject=subject,
        sentence=f"no file of it is in {place}, which may not be mounted",
        repair="bring that folder back; what is lost for good can be deleted in MLflow",
    )
