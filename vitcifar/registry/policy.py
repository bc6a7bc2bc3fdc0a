"""What the gates require of a model's versions, its recorded changes, and the result of one gate.

The policy belongs to the registered model: each change is a record of its own, and the newest one counts. The
options of `vitcifar promote` and `vitcifar policy` are generated from `Policy`. Imports no mlflow, torch or numpy.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcifar.config import check, setting
from vitcifar.errors import ConfigError, RegistryError

PREFIX = "policy/"
REQUIREMENTS = ("none", "not-clearly-worse", "not-worse", "better")  # from the loosest to the strictest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Limits of the gates of a promotion. Raises ConfigError for a value out of bounds."""

    require: str = setting(
        "not-clearly-worse",
        "Result required against the version that holds the alias: not-clearly-worse (not shown to be worse, and the "
        "observed loss is within the margin), not-worse (shown to be within the margin), better, or none.",
        choices=REQUIREMENTS,
    )
    margin: float = setting(0.02, "Loss of accuracy that still counts as not worse.", minimum=0.0, maximum=1.0)
    min_accuracy: float = setting(
        0.0,
        "Minimum accuracy on the test images, which must be clearly above chance in any case.",
        minimum=0.0,
        maximum=1.0,
    )
    max_ece: float = setting(
        0.15, "Maximum expected calibration error on the test images (1 = no maximum).", minimum=0.0, maximum=1.0
    )
    max_p95_ms: float = setting(
        0.0, "Maximum 95th percentile of the latency of one image here, in ms (0 = no maximum).", minimum=0.0
    )
    golden_dir: str = setting("none", "Folder of CLASS/* images that must all be classified correctly (none = none).")
    feedback: str = setting(
        "none",
        "Store of feedback (SQLAlchemy URL) on whose marked images it must not be worse than the alias' holder "
        "(none = none).",
    )
    approvals: int = setting(0, "Approvals required of users other than the one who promotes.", minimum=0)
    require_signature: str = setting(
        "none", "File of the public keys, or their text, of which one must have signed the version (none = none)."
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check(field, getattr(self, field.name))
        file = self.feedback.removeprefix("sqlite:///")
        if file != self.feedback and not Path(file).is_absolute():  # the policy counts in other folders too
            object.__setattr__(self, "feedback", f"sqlite:///{Path(file).absolute()}")

    def looser_than(self, other: "Policy") -> tuple[str, ...]:
        """The fields that let a version pass that the other policy rejects."""
        mine, others = self._strictness(), other._strictness()
        looser = [name for name in mine if mine[name] < others[name]]
        same = Path(self.golden_dir).absolute() == Path(other.golden_dir).absolute()
        looser += ["golden_dir"] if other.golden_dir != "none" and not same else []
        looser += ["feedback"] if other.feedback not in ("none", self.feedback) else []
        keys, others_keys = (set(one.require_signature.split(",")) for one in (self, other))
        looser += ["require_signature"] if other.require_signature != "none" and not keys <= others_keys else []
        return tuple(looser)

    @property
    def summary(self) -> str:
        """The limits that differ from the defaults, for example "require not-worse, max_p95_ms 200.0"."""
        default = Policy()
        own = {name: value for name, value in dataclasses.asdict(self).items() if value != getattr(default, name)}
        return ", ".join(f"{name} {value}" for name, value in own.items()) or "the defaults"

    def _strictness(self) -> dict[str, float]:
        return {
            "require": REQUIREMENTS.index(self.require),
            "margin": -self.margin,
            "min_accuracy": self.min_accuracy,
            "max_ece": -self.max_ece,
            "max_p95_ms": -(self.max_p95_ms or math.inf),
            "approvals": self.approvals,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyChange:
    """One recorded change of a model's policy."""

    when: str  # UTC, ISO 8601
    who: str
    reason: str
    before: Mapping[str, Any]  # the fields that changed
    after: Mapping[str, Any]  # every field

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)

    @property
    def loosened(self) -> tuple[str, ...]:
        """The fields that became looser."""
        return Policy(**self.after).looser_than(Policy(**{**self.after, **self.before}))

    @property
    def summary(self) -> str:
        """What was changed, for example "margin 0.02 -> 0.05 (looser)"."""
        changes = (
            f"{name} {value} -> {self.after.get(name)}{' (looser)' if name in self.loosened else ''}"
            for name, value in self.before.items()
        )
        return ", ".join(changes)


def read_changes(tags: Mapping[str, str]) -> list[PolicyChange]:
    """The changes recorded in a registered model's tags, in order of time. Raises RegistryError for an unreadable one:
    without it an older, looser policy would count."""
    try:
        changes = [PolicyChange(**json.loads(value)) for key, value in tags.items() if key.startswith(PREFIX)]
        for change in changes:
            Policy(**change.after)
    except (ValueError, TypeError, ConfigError) as error:
        raise RegistryError(
            f"The policy of the model, in its tags {PREFIX}…, cannot be read ({error}): update vitcifar."
        ) from None
    return sorted(changes, key=lambda change: change.when)


def read_policy(tags: Mapping[str, str]) -> Policy:
    """The policy of a registered model, from its tags; the defaults if it was never changed."""
    changes = read_changes(tags)
    return Policy(**changes[-1].after) if changes else Policy()


MAX_MESSAGE = 300  # characters: a move with its nine gates must fit into a tag, which holds 5,000 in some databases
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
