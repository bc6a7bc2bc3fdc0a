"""What a user can fix, as one tree. Everything else is a bug and keeps its traceback.

VitCifarError
├── ConfigError      a setting with a value that cannot be
├── DataError        images that are missing, too few or not where they were said to be
│   └── ImageError     one file or one upload that is not a usable image
├── TrainingError    a loss that is not finite, a checkpoint that does not fit
├── TrackingError    a tracking store or a run that cannot be reached
├── RegistryError    a model, version or alias that is not there
├── ReleaseError     a release that is broken, changed or not proven
│   └── GateError        a gate that failed
└── ServingError     a port in use, a question that cannot be answered
"""

from collections.abc import Sequence
from typing import Any


class VitCifarError(Exception):
    """What happened, then what to type next, in one or two sentences."""


class ConfigError(VitCifarError):
    pass


class DataError(VitCifarError):
    pass


class ImageError(DataError):
    pass


class TrainingError(VitCifarError):
    pass


class TrackingError(VitCifarError):
    pass


class RegistryError(VitCifarError):
    pass


class ReleaseError(VitCifarError):
    pass


class GateError(ReleaseError):
    """Gates that did not open; `gates` holds them all, `summary` leaves out what they say."""

    def __init__(self, sentence: str, further: str, gates: Sequence[Any]) -> None:
        failed = [gate for gate in gates if not gate.passed]
        said = "; ".join(f"{gate.name}: {gate.message}" for gate in failed)
        super().__init__(f"{sentence}. {said}. {further}")
        self.summary = f"{sentence}: {', '.join(gate.name for gate in failed)}. {further}"
        self.gates = tuple(gates)


class ServingError(VitCifarError):
    pass
