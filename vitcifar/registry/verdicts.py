"""The recorded results of attempts to promote a version."""

import dataclasses
import datetime
import json
from typing import TYPE_CHECKING

from vitcifar.registry.policy import Gate

if TYPE_CHECKING:
    from vitcifar.registry.registry import Version

PREFIX = "gates/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The recorded result of one attempt to promote a version."""

    alias: str
    when: str  # UTC, such as 2026-01-31 12:00:00Z
    who: str
    outcome: str  # passed, rejected or overridden
    reason: str
    gates: tuple[Gate, ...]


def read_verdicts(version: "Version") -> list[Verdict]:
    """Every recorded attempt to promote a version, in order of time."""
    names = [key.removeprefix(PREFIX).split("/") for key in version.tags if key.startswith(PREFIX)]
    verdicts = []
    for alias, stamp in sorted((name for name in names if len(name) == 2), key=lambda name: name[1]):
        try:
            fields = json.loads(version.tags[f"{PREFIX}{alias}/{stamp}"])
            verdict = Verdict(
                alias=alias,
                when=f"{datetime.datetime.fromisoformat(stamp):%Y-%m-%d %H:%M:%S}Z",
                who=fields.get("who", "unknown"),
                outcome="passed" if fields["passed"] else "overridden" if fields["forced"] else "rejected",
                reason=fields.get("reason", ""),
                gates=tuple(map(Gate.from_dict, fields["gates"])),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # not written by vitcifar
        verdicts.append(verdict)
    return verdicts
