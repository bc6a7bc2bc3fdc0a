"""The differences between two versions: config, data, metrics, checks, code, environment, files."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from vitcifar.evaluation.calibration import NEVER
from vitcifar.release.manifest import Manifest

SERVING = ("serves", "image_size", "temperature", "threshold", "preprocessing")
MAX_ITEMS = 20  # of a list that is shown; a longer or nested one is shown as its length and a hash


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One entry in which two releases differ; None = absent."""

    section: str
    name: str
    before: Any
    after: Any


def compare_releases(before: Manifest, after: Manifest) -> list[Difference]:
    """Every difference between two releases, section by section."""
    left, right = sections(before), sections(after)
    return [found for section in left for found in compare_sections(section, left[section], right[section])]


def compare_sections(section: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted(before.keys() | after.keys()):
        left, right = before.get(name), after.get(name)
        if left != right:
            yield Difference(section=section, name=name, before=left, after=right)


def sections(release: Manifest) -> dict[str, dict[str, Any]]:
    """The contents of a release, as sections of flat names."""
    checks = {name: value for name, value in release.checks.items() if name not in ("test", "served")}
    served = release.checks.get("served") or {}
    checks["served"] = {**served, "evaluation": metrics(served.get("evaluation") or {})} if served else {}
    return {
        "config": flatten(release.config),
        "data": flatten({"fingerprint": release.fingerprint, "class_names": release.class_names} | release.counts),
        "metrics": metrics(release.checks.get("test") or {}),
        "checks": flatten(checks),
        "serving": flatten(_with_threshold({name: getattr(release, name) for name in SERVING})),
        "code": flatten(release.git | {"run_id": release.run_id}),
        "environment": flatten(release.environment),
        "files": dict(release.files),
    }


def metrics(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The scalars of an evaluation, without the values of single images and classes."""
    scalars = {name: value for name, value in evaluation.items() if not isinstance(value, (list, tuple, Mapping))}
    return _with_threshold(scalars)


def _with_threshold(values: dict[str, Any]) -> dict[str, Any]:
    """With the words for a threshold of None, which would read as absent; vitcifar 0.1 recorded it as 1."""
    return values | ({"threshold": NEVER} if values.get("threshold", 0) in (None, 1) else {})


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined to one, a.b.c; a long list as its length and a hash."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{name}.")
        elif isinstance(inner, (list, tuple)):
            flat[f"{prefix}{name}"] = list(inner)
            if len(inner) > MAX_ITEMS or any(isinstance(item, (list, tuple, Mapping)) for item in inner):
                digest = hashlib.sha256(json.dumps(inner, sort_keys=True).encode()).hexdigest()[:12]
                flat[f"{prefix}{name}"] = f"{len(inner)} entries, {digest}"
        else:
            flat[f"{prefix}{name}"] = inner
    return flat
