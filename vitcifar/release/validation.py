"""What a release.json may hold: its types, and those of the records in it that are read; older ones may lack some."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcifar.errors import ReleaseError, listed

if TYPE_CHECKING:
    from vitcifar.release.manifest import Manifest

MAX_DEPTH = 30  # of lists in lists
NUMBER, TEXT = (int, float), (str,)
TYPES: dict[str, type | tuple[type, ...]] = {
    "image_size": int,
    "temperature": NUMBER,
    "threshold": (*NUMBER, type(None)),
    **dict.fromkeys(("release_id", "model_name", "fingerprint", "run_id", "serves"), str),
    **dict.fromkeys(("files", "checks", "config", "counts", "git", "environment", "preprocessing"), dict),
}
RECORDS: dict[str, dict[str, tuple[type, ...]]] = {  # what is read of them; any value may be absent
    "checks.parity": dict.fromkeys(("max_logit_difference", "num_changed", "num_images", "num_edge_cases"), NUMBER),
    "checks.served": {
        **dict.fromkeys(("file", "openvino"), TEXT),
        **dict.fromkeys(("agreement", "num_edge_cases", "num_edge_cases_changed", "weight_bits"), NUMBER),
        "evaluation": (dict,),
    },
    "checks.int8": {},
    "checks.openvino": {},
    "checks.image_statistics": {},
    "environment.packages": {},
    "environment.numerics": {},
    "git": {"commit": TEXT},
    "config": {"data": TEXT, "data_dir": TEXT, "arch": TEXT, "weights": TEXT},
}
EVALUATION: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("accuracy", "top2_accuracy", "top3_accuracy", "f1_macro", "loss", "ece", "brier"), NUMBER),
    "classes": (list,),
    "fingerprint": TEXT,
}
CLASS_NUMBERS = ("precision", "recall", "f1")


def parse_json(content: bytes) -> Any:
    """JSON without NaN, half characters and endless nesting. Raises ValueError."""

    def refuse(name: str) -> None:
        raise ValueError(f"it holds {name}")

    fields = json.loads(content, parse_constant=refuse)
    json.dumps(fields, ensure_ascii=False).encode()
    level, depth = [fields], 0
    while level := [inner for one in level if isinstance(one, (dict, list)) for inner in _values(one)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    return fields


def _values(one: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return one.values() if isinstance(one, dict) else one


def check_types(path: Path, release: "Manifest") -> None:
    """Raises ReleaseError for a release.json, read from `path`, with values of types that no reader expects."""
    wrong = [name for name, expected in TYPES.items() if not isinstance(getattr(release, name), expected)]
    if not wrong:
        texts = (*release.class_names, *release.files)
        wrong += ["class_names or files"] if {type(text) for text in texts} != {str} else []
        wrong += [f"files, {name!r}" for name, digest in release.files.items() if not is_digest(digest)]
        wrong += [] if 0 < release.temperature < float("inf") and release.temperature < 1e9 else ["temperature"]
        wrong += _wrong_records(release)
    if wrong:
        raise ReleaseError(f"{path} has invalid values for {listed(wrong, 5)}: pull the version again.")


def _wrong_records(release: "Manifest") -> Iterator[str]:
    """The names of records that are present, and of another type than every reader expects."""
    evaluations = {"checks.test": release.checks.get("test")}
    if isinstance(served := release.checks.get("served"), dict):
        evaluations["checks.served.evaluation"] = served.get("evaluation")
    for place, table in (
        *RECORDS.items(),
        *((place, EVALUATION) for place in evaluations),
        *((f"counts.{split}", {}) for split in release.counts),
    ):
        record: Any = {"checks": release.checks} | {name: getattr(release, name) for name in TYPES}
        for name in place.split(".", 2):
            record = record.get(name) if isinstance(record, dict) else None
        if record is not None and not isinstance(record, dict):
            yield place
        for name, expected in table.items() if isinstance(record, dict) else ():
            if not isinstance(record.get(name), (*expected, type(None))):
                yield f"{place}.{name}"
    for split, counts in release.counts.items():
        if isinstance(counts, dict) and {type(count) for count in counts.values()} - {int}:
            yield f"counts.{split}"
    for place, evaluation in evaluations.items():
        for row in (evaluation.get("classes") or ()) if isinstance(evaluation, dict) else ():
            if not isinstance(row, dict) or any(not isinstance(row.get(name), NUMBER) for name in CLASS_NUMBERS):
                yield f"{place}.classes"


def is_digest(text: object) -> bool:
    """Whether something is a sha256 in hex."""
    return isinstance(text, str) and bool(re.fullmatch("[0-9a-f]{64}", text))
