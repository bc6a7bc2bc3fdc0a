"""What the gates require of a version: every limit once, with its default, help and bounds.

The options of `vitcifar promote` are generated from these fields. Imports neither mlflow nor torch nor numpy.
"""

import dataclasses

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
