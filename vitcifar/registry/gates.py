"""What a version must pass before an alias may mean it: each gate with its number, its limit and its verdict."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from vitcifar.errors import ConfigError, DataError, GateError, ReleaseError, VitCifarError
from vitcifar.evaluation.compare import Comparison, compare_evaluations
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.inference.session import OnnxClassifier
from vitcifar.registry.aliases import MAX_MESSAGE, Event, new_event
from vitcifar.registry.policy import Policy
from vitcifar.registry.registry import Registry, check_alias
from vitcifar.release.latency import onnx_p95
from vitcifar.release.manifest import Manifest, served_evaluation
from vitcifar.release.parity import MAX_LOGIT_DIFFERENCE

PREFIX = "gates/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """One gate: what was found, what was asked, and the verdict in words."""

    name: str
    passed: bool
    message: str
    value: float | None = None
    limit: float | None = None
    required: bool = True  # false when no limit was set, so that it could not fail

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "message": self.message[:MAX_MESSAGE]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promotion:
    """What `promote` did: the move of the alias and the gates it passed, or was forced past."""

    event: Event
    gates: tuple[Gate, ...]


OPTIONS = {  # what moves the limit of a gate
    "accuracy": "--min-accuracy",
    "champion": "--require, --margin",
    "calibration": "--max-ece",
    "latency": "--max-p95-ms",
    "golden images": "--golden-dir",
}


def promote(
    registry: Registry,
    spec: str | int,
    alias: str = "champion",
    *,
    policy: Policy | None = None,
    force: bool = False,
    reason: str = "",
) -> Promotion:
    """Let an alias mean a version if it passes every gate; the gates are recorded on the version either way.

    `force` passes failed gates, needs a reason and is recorded; a release that is not whole cannot be forced.
    Raises GateError, the alias left where it was, when a gate fails, and RegistryError when the alias moved meanwhile.
    """
    check_alias(alias)
    if force and not reason.strip():
        raise ConfigError("A forced promotion needs a reason: add --reason.")
    number, holder = registry.resolve(spec), registry.aliases().get(alias)
    gates = check_gates(registry, number, alias, policy or Policy())
    failed = [gate for gate in gates if not gate.passed]
    forced = force and bool(failed) and gates[0].passed
    event = new_event(alias, holder, number, "promote", reason, forced=forced)
    recorded = [gate.to_dict() for gate in gates]
    verdict = {"passed": not failed, "forced": forced, "who": event.who, "reason": event.reason, "gates": recorded}
    registry.tag(number, f"{PREFIX}{alias}/{event.stamp}", json.dumps(verdict, ensure_ascii=False))
    if failed and not forced:
        name = f"{registry.model_name} {number}"
        options = ", ".join(OPTIONS[gate.name] for gate in failed if gate.name in OPTIONS)
        further = (
            f"{f'Limits: {options}. ' if options else ''}Past them: vitcifar promote {number} --force yes --reason WHY."
            if gates[0].passed
            else "A release that is not whole cannot be forced: vitcifar doctor."
        )
        raise GateError(f"{name} was not promoted to {alias}", further, gates)
    moved = registry.move(alias, number, "promote", reason, expected=holder, gates=tuple(recorded), forced=forced)
    return Promotion(event=moved, gates=gates)


def check_gates(registry: Registry, number: int, alias: str, policy: Policy) -> tuple[Gate, ...]:
    """Every gate of a version, in order. When its files are not whole the others are not tried."""
    try:
        registry.verify_store(registry.show(number))
        release = registry.pull(number)
    except ReleaseError as error:
        return (Gate(name="files", passed=False, message=str(error).rstrip(".")),)
    score = _score(release)
    return (
        Gate(name="files", passed=True, message="all whole", value=len(release.files)),
        _parity(release),
        _accuracy(score, policy),
        _champion(registry, number, alias, score, policy),
        _calibration(score, policy),
        _latency(release, policy),
        _golden(release, policy),
    )


def _score(release: Manifest) -> Evaluation | None:
    """What the file that serves scored on the test images; None when it was not recorded whole."""
    try:
        return Evaluation.from_dict(served_evaluation(release))
    except (KeyError, TypeError, ValueError):
        return None


NO_SCORE = "its scores on test images were not recorded, train it again"


def _parity(release: Manifest) -> Gate:
    found = release.checks.get("parity", {})
    number, changed = found.get("max_logit_difference"), found.get("num_changed")
    passed = number is not None and number <= MAX_LOGIT_DIFFERENCE and changed == 0
    largest = "an unknown number" if number is None else f"{number:.2g}"
    sentence = f"{changed} of {found.get('num_images', 0)} answers changed by the export, logits by up to {largest}"
    if served := release.checks.get("served"):
        sentence += f"; {served['file']}, which serves, agrees on {served['agreement']:.2%} of the test images"
    return Gate(name="parity", passed=passed, message=sentence, value=number, limit=MAX_LOGIT_DIFFERENCE)


def _accuracy(score: Evaluation | None, policy: Policy) -> Gate:
    if score is None:
        return Gate(name="accuracy", passed=False, message=NO_SCORE, limit=policy.min_accuracy)
    short = policy.min_accuracy - score.accuracy
    interval = f"95 % interval {score.accuracy_low:.4f} to {score.accuracy_high:.4f}, {score.num_images} images"
    sentence = f"{score.accuracy:.4f} ({interval}), limit {policy.min_accuracy:.4f}" + (
        f", short by {short:.4f}" if short > 0 else ""
    )
    return Gate(name="accuracy", passed=short <= 0, message=sentence, value=score.accuracy, limit=policy.min_accuracy)


def _champion(registry: Registry, number: int, alias: str, score: Evaluation | None, policy: Policy) -> Gate:
    """The paired test against the version that holds the alias now."""
    holder = registry.aliases().get(alias)
    if policy.require == "none" or holder in (None, number):
        why = "not asked for" if policy.require == "none" else f"no other version is {alias}"
        return Gate(name="champion", passed=True, required=False, message=why)
    try:
        champion = _score(registry.pull(holder))
        if score is None or champion is None:
            raise DataError(NO_SCORE if score is None else f"the scores of {holder} were not recorded")
        comparison = compare_evaluations(score, champion, margin=policy.margin)
    except VitCifarError as error:
        return Gate(name="champion", passed=False, message=f"it cannot be compared with {holder}: {error}".rstrip("."))
    passed = {
        "better": comparison.outcome == "better",
        "not-worse": comparison.not_worse or comparison.outcome == "better",
        "not-clearly-worse": comparison.outcome != "worse",
    }[policy.require]
    limit = {"better": 0.0, "not-worse": -policy.margin}.get(policy.require)
    sentence = f"against version {holder} {_said(comparison, policy)}"
    return Gate(name="champion", passed=passed, message=sentence, value=comparison.difference, limit=limit)


def _said(comparison: Comparison, policy: Policy) -> str:
    text = comparison.summary()
    if policy.require != "not-worse" or comparison.outcome == "worse":
        return text
    if comparison.not_worse:
        return f"not worse by more than {100 * policy.margin:g} points; better or worse: {text}"
    needed = comparison.images_needed_not_worse
    more = f"; to show that it is not worse by more than {100 * policy.margin:g} points takes about {needed:,} images"
    return text + (more if needed else "")


def _calibration(score: Evaluation | None, policy: Policy) -> Gate:
    if score is None:
        return Gate(name="calibration", passed=False, message=NO_SCORE, limit=policy.max_ece)
    passed = score.ece <= policy.max_ece
    over = "" if passed else f", over by {score.ece - policy.max_ece:.4f}"
    sentence = f"expected calibration error {score.ece:.4f}, limit {policy.max_ece:.4f}{over}"
    return Gate(name="calibration", passed=passed, message=sentence, value=score.ece, limit=policy.max_ece)


def _latency(release: Manifest, policy: Policy) -> Gate:
    limit = policy.max_p95_ms or None
    (p95,) = onnx_p95([release.onnx_path])
    over = f", over by {p95 - limit:.3g}" if limit and p95 > limit else ""
    budget = f"budget {limit:g} ms{over}" if limit else "no budget was given"
    sentence = f"{p95:.1f} ms at the 95th percentile on this machine, {budget}"
    return Gate(name="latency", passed=not over, required=limit is not None, message=sentence, value=p95, limit=limit)


def _golden(release: Manifest, policy: Policy) -> Gate:
    if policy.golden_dir == "none":
        return Gate(name="golden images", passed=True, required=False, message="no folder was given")
    paths = sorted(path for path in Path(policy.golden_dir).glob("*/*") if path.is_file())
    if not paths:
        raise DataError(f"There are no golden images in {policy.golden_dir}: put them into one folder for each class.")
    classifier = OnnxClassifier(release.onnx_path)
    wrong = []
    for path in paths:
        try:
            label = classifier.predict(path).label
        except VitCifarError as error:
            label = str(error)
        if label != path.parent.name:
            wrong.append(f"{path.parent.name}/{path.name} ({label})")
    sentence = f"{len(wrong)} of {len(paths)} wrong" + (f": {', '.join(wrong[:5])}" if wrong else "")
    return Gate(name="golden images", passed=not wrong, message=sentence, value=len(wrong), limit=0)
