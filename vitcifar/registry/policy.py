"""What the gates require of a version, and the result of one gate.

The options of `vitcifar promote` are generated from `Policy`. Imports neither mlflow nor torch nor numpy.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitcifar.config import check, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Limits of the gates of `vitcifar promote`. Raises ConfigError for a value out of bounds."""

    require: str = setting(
        "not-worse",
        "Result required of the paired test against the version that holds the alias (none = no test).",
        choices=("better", "not-worse", "not-clearly-worse", "none"),
    )
    margin: float = setting(0.02, "Loss of accuracy that still counts as not worse.", minimum=0.0, maximum=1.0)
    min_accuracy: float = setting(
        0.0, "Minimum accuracy on the test images (0 = no minimum).", minimum=0.0, maximum=1.0
    )
    max_ece: float = setting(
        0.15, "Maximum expected calibration error on the test images (1 = no maximum).", minimum=0.0, maximum=1.0
    )
    max_p95_ms: float = setting(
        0.0, "Maximum 95th percentile of the latency of one image here, in ms (0 = no maximum).", minimum=0.0
    )
    golden_dir: str = setting("none", "Folder of CLASS/* images that must all be classified correctly (none = none).")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check(field, getattr(self, field.name))


MAX_MESSAGE = 400  # characters: a move with its seven gates must fit into a tag, which holds 5,000 in some databases
OLD_FIELDS = {"asked": "required", "sentence": "message", "number": "value"}  # as vitcifar 0.1 recorded them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """The result of one gate: the measured value, its limit and a message."""

    name: str
    passed: bool
    message: str
    value: float | None = None
    limit: float | None = None
    required: bool = True  # false without a limit: such a gate cannot fail

    @property
    def state(self) -> str:
        if not self.passed:
            return "FAILED"
        return "passed" if self.required else "not required"

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "message": self.message[:MAX_MESSAGE]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Gate":
        """A recorded gate. Raises TypeError for fields that no gate has."""
        return cls(**{OLD_FIELDS.get(name, name): value for name, value in fields.items()})
