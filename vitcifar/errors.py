"""Errors that a user can fix, as one tree. Everything else is a bug and keeps its traceback.

VitCifarError
├── ConfigError      an invalid value of a setting
├── DataError        missing, too few or mismatching images
│   └── ImageError     a file or an upload that cannot be used as an image
│       └── BusyError    nothing is free to decode an image, which may be fine
├── TrainingError    a loss that is not finite, an incompatible checkpoint
├── TrackingError    an unreachable tracking store, an unknown run
├── RegistryError    an unknown model, version or alias
├── ReleaseError     an incomplete, changed or unverified release
│   └── GateError      a failed gate
└── ServingError     a port in use, an invalid request
"""

import re
from collections.abc import Sequence
from typing import Any

SECRETS = re.compile(r"(?<=[?&;#])(\w{0,20}(?:pass|pwd|auth|token|secret|key)\w{0,20}=)[^\s&;\"'<>]+", re.IGNORECASE)
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069]")  # of the direction of text too


def redact(text: str) -> str:
    """The text without the user names, passwords and secrets of the addresses in it. In linear time."""
    before, *addresses = text.split("://")
    return "://".join([before, *map(_without_user, addresses)]) if addresses else text


def _without_user(address: str) -> str:
    """What follows ://, up to the next address, with *** for the user; a password may hold a / that is not quoted."""
    word = re.split(r"[\s\"'<>]", address, maxsplit=1)[0]
    host = word.partition("/")[0]
    end = (word if ":" in host and "@" not in host else host).rfind("@")
    return SECRETS.sub(r"\1***", address if end < 0 else f"***{address[end:]}")


def printable(text: str) -> str:
    """The text with control characters, which could write anywhere on a terminal, as escapes; on one line."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def listed(names: Sequence[str], limit: int = 20, separator: str = ", ") -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more


def reason_of(error: BaseException) -> str:
    """A library's text on one line, whole: it often starts with advice and ends with the reason."""
    text = " ".join(str(error).split())
    return text if " " in text else f"{type(error).__name__} {text}".rstrip()


class VitCifarError(Exception):
    """What happened, then what to type next, in one or two sentences, without the passwords of addresses."""

    def __init__(self, message: str = "") -> None:
        super().__init__("\n".join(map(printable, redact(str(message)).split("\n"))))


class ConfigError(VitCifarError):
    pass


class DataError(VitCifarError):
    pass


class ImageError(DataError):
    pass


class BusyError(ImageError):
    """The image may be fine: nothing is free to decode it."""


class TrainingError(VitCifarError):
    pass


class TrackingError(VitCifarError):
    pass


class RegistryError(VitCifarError):
    pass


class ReleaseError(VitCifarError):
    pass


class GateError(ReleaseError):
    """At least one gate failed; `gates` holds all of them, `summary` leaves out their messages."""

    def __init__(self, title: str, advice: str, gates: Sequence[Any]) -> None:
        failed = [gate for gate in gates if not gate.passed]
        messages = "; ".join(f"{gate.name}: {gate.message}" for gate in failed)
        super().__init__(f"{title}. {messages}. {advice}")
        self.summary = f"{title}: {', '.join(gate.name for gate in failed)}. {advice}"
        self.gates = tuple(gates)


class ServingError(VitCifarError):
    pass
