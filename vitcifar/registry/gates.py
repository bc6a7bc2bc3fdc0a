"""The gates of a promotion: each measures one property of a version against its limit and passes or fails."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from vitcifar.errors import ConfigError, DataError, GateError, ReleaseError, VitCifarError, redact
from vitcifar.evaluation.compare import Comparison, compare_evaluations
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.inference.machine import this_machine
from vitcifar.registry.aliases import STAMP, Event, check_alias, current_user, move_alias, new_event
from vitcifar.registry.approvals import read_approvals
from vitcifar.registry.marked import check_marked
from vitcifar.registry.policy import Gate, Policy, read_policy
from vitcifar.registry.prune import check_kept
from vitcifar.registry.records import hide
from vitcifar.registry.registry import Registry, Version
from vitcifar.registry.signing import check_signature
from vitcifar.registry.verdicts import PREFIX
from vitcifar.release.latency import onnx_p95
from vitcifar.release.manifest import Manifest, served_evaluation
from vitcifar.release.parity import MAX_LOGIT_DIFFERENCE
from vitcifar.release.served import open_served
from vitcifar.release.signature import key_text

NO_SCORES = "its scores on the test images are not recorded, train it again"
SIGNIFICANCE = 0.01  # of the test against chance
LIMITS = {  # the policy's fields that set the limit of a gate
    "accuracy": ("min_accuracy",),
    "champion": ("require", "margin"),
    "calibration": ("max_ece",),
    "latency": ("max_p95_ms",),
    "golden images": ("golden_dir",),
    "feedback": ("feedback",),
    "approvals": ("approvals",),
    "signature": ("require_signature",),
}
NEVER_FORCED = ("files", "signature")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promotion:
    """The move of the alias and the gates that passed or were overridden."""

    event: Event
    gates: tuple[Gate, ...]


def promote(
    registry: Registry, spec: str | int, alias: str, *, limits: Mapping[str, Any], force: bool, reason: str
) -> Promotion:
    """See `Registry.promote`; the verdict is recorded on the version whether the alias is moved or not."""
    from vitcifar.registry import description  # which imports this module

    check_alias(alias)
    if force and not reason.strip():
        raise ConfigError("A forced promotion needs a reason: add --reason.")
    hide(registry)
    versions, tags = registry.read()
    version = registry.find(spec, versions)
    required = read_policy(tags)
    if "require_signature" in limits:
        limits = {**limits, "require_signature": key_text(limits["require_signature"])}
    policy = dataclasses.replace(required, **limits)
    holder = next((other for other in versions if alias in other.aliases), None)
    before = holder.number if holder else None
    gates = reject_looser(check_gates(registry, version, alias, holder, policy), policy, required)
    failed = [gate for gate in gates if not gate.passed]
    forced = force and bool(failed) and not any(gate.name in NEVER_FORCED for gate in failed)
    event = new_event(alias, before, version.number, "promote", reason, forced=forced)
    recorded = tuple(gate.to_dict() for gate in gates)
    verdict = {"passed": not failed, "forced": forced, "who": event.who, "reason": event.reason, "gates": recorded}
    registry.tag(
        version.number, f"{PREFIX}{alias}/{event.when.translate(STAMP)}", json.dumps(verdict, ensure_ascii=False)
    )
    if failed and not forced:
        description.update(registry, version.number)
        title = f"{registry.model_name} {version.number} was not promoted to {alias}"
        raise GateError(title, _advice(f"{version.number} --alias {alias}{registry.model_option}", gates), gates)
    moved = move_alias(
        registry, alias, version.number, "promote", reason, expected=before, gates=recorded, forced=forced
    )
    description.update(registry, version.number)
    return Promotion(event=moved, gates=gates)


def _advice(arguments: str, gates: tuple[Gate, ...]) -> str:
    if not gates[0].passed:
        return "An incomplete release cannot be forced: repair it as above."
    if any(gate.name == "signature" and not gate.passed for gate in gates):
        return "An unsigned release cannot be forced: sign it as above."
    return f"To override: vitcifar promote {arguments} --force yes --reason WHY."


def reject_looser(gates: tuple[Gate, ...], policy: Policy, required: Policy) -> tuple[Gate, ...]:
    """The gates, failed where the policy they were checked against is looser than the required one."""
    looser = policy.looser_than(required)

    def reject(gate: Gate) -> Gate:
        if not (fields := [name for name in LIMITS.get(gate.name, ()) if name in looser]):
            return gate
        limits = ", ".join(
            f"{name} {redact(str(getattr(policy, name)))}, the policy is {getattr(required, name)}" for name in fields
        )
        message = f"looser than the policy ({limits}): {gate.message}"
        return dataclasses.replace(gate, passed=False, required=True, message=message)

    return tuple(map(reject, gates))


def check_gates(
    registry: Registry, version: Version, alias: str, holder: Version | None, policy: Policy
) -> tuple[Gate, ...]:
    """Check every gate of a version against the holder of an alias; without a complete release only `files`."""
    try:
        registry.verify_store(version)
        check_kept(registry, version)
        release = registry.pull_version(version)
    except ReleaseError as error:
        return (Gate(name="files", passed=False, message=str(error).rstrip(".")),)
    evaluation = read_evaluation(release)
    return (
        Gate(name="files", passed=True, message="complete, every sha256 as registered", value=len(release.files)),
        _parity(release.checks),
        _accuracy(evaluation, policy.min_accuracy),
        _champion(registry, alias, holder if holder != version else None, evaluation, policy),
        _calibration(evaluation, policy.max_ece),
        _latency(release, policy),
        _golden(release, policy),
        check_marked(registry, version, holder if holder != version else None, policy),
        _approvals(registry, version, policy),
        _signature(registry, version, policy),
    )


def read_evaluation(release: Manifest) -> Evaluation | None:
    """The recorded evaluation of the served file on the test images; None when it is missing or incomplete."""
    try:
        return Evaluation.from_dict(served_evaluation(release))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _parity(checks: Mapping[str, Any]) -> Gate:
    parity = checks.get("parity") or {}
    difference, num_changed = parity.get("max_logit_difference"), parity.get("num_changed")
    passed = difference is not None and difference <= MAX_LOGIT_DIFFERENCE and num_changed == 0
    message = (
        f"{num_changed} of {parity.get('num_images', 0)} predictions changed by the export, largest logit difference "
        f"{'not recorded' if difference is None else f'{difference:.2g}'}"
    )
    if served := checks.get("served"):
        num_edge_cases_changed = served.get("num_edge_cases_changed", 0)
        passed = passed and num_edge_cases_changed == 0
        agreement = served.get("agreement") or 0
        in_openvino = f" in OpenVINO ({served['openvino']})" if served.get("openvino") else ""
        message += (
            f"; the served {served.get('file')}{in_openvino} agrees on {agreement:.2%} of the test images and changes "
            f"{num_edge_cases_changed} of {served.get('num_edge_cases', 0)} predictions on edge-case files"
        )
    return Gate(name="parity", passed=passed, message=message, value=difference, limit=MAX_LOGIT_DIFFERENCE)


def _accuracy(evaluation: Evaluation | None, minimum: float) -> Gate:
    """The accuracy against its minimum and, by a one-sided exact binomial test, against the largest class's share."""
    if evaluation is None:
        return Gate(name="accuracy", passed=False, message=NO_SCORES, limit=minimum)
    total, accuracy = evaluation.num_images, evaluation.accuracy
    chance = float(np.bincount(evaluation.labels).max()) / total
    p_value = float(binomtest(int(evaluation.correct.sum()), total, chance, alternative="greater").pvalue)
    message = f"{evaluation.accuracy_text()}, minimum {minimum:.4f}"
    if too_low := accuracy < minimum:
        message += f", {minimum - accuracy:.4f} too low"
    if at_chance := p_value >= SIGNIFICANCE:
        message += f", not clearly above chance: always the largest class is {chance:.4f} (one-sided p = {p_value:.2g})"
        message += "; no accuracy would be on so few images" if chance**total >= SIGNIFICANCE else ""
    passed = not too_low and not at_chance
    return Gate(name="accuracy", passed=passed, message=message, value=accuracy, limit=max(minimum, chance))


def _calibration(evaluation: Evaluation | None, maximum: float) -> Gate:
    if evaluation is None:
        return Gate(name="calibration", passed=False, message=NO_SCORES, limit=maximum)
    ece = evaluation.ece
    message = f"expected calibration error {ece:.4f}, maximum {maximum:.4f}"
    message += f", {ece - maximum:.4f} too high" if ece > maximum else ""
    return Gate(name="calibration", passed=ece <= maximum, message=message, value=ece, limit=maximum)


def _champion(
    registry: Registry, alias: str, holder: Version | None, evaluation: Evaluation | None, policy: Policy
) -> Gate:
    """The paired test against the other version that the alias points to."""
    if policy.require == "none" or holder is None:
        why = "require is none" if policy.require == "none" else f"{alias} points to no other version"
        return Gate(name="champion", passed=True, required=False, message=why)
    try:
        champion = read_evaluation(registry.pull_version(holder))
        if evaluation is None or champion is None:
            missing = NO_SCORES if evaluation is None else f"the scores of version {holder.number} are not recorded"
            raise DataError(missing)
        comparison = compare_evaluations(evaluation, champion, margin=policy.margin)
    except VitCifarError as error:
        message = f"it cannot be compared with version {holder.number}: {error}".rstrip(".")
        return Gate(name="champion", passed=False, message=message)
    limit = 0.0 if policy.require == "better" else -policy.margin
    passed = comparison.outcome == "better"
    if policy.require != "better" and comparison.outcome == "inconclusive":
        passed = comparison.not_worse if policy.require == "not-worse" else comparison.difference >= limit
    message = f"against version {holder.number} {_summary(comparison, policy)}"
    return Gate(name="champion", passed=passed, message=message, value=comparison.difference, limit=limit)


def _summary(comparison: Comparison, policy: Policy) -> str:
    text, points = comparison.summary(), f"{100 * policy.margin:g} points"
    if comparison.outcome != "inconclusive" or policy.require == "better":
        return text
    if policy.require == "not-clearly-worse":
        fell = "is" if comparison.difference < -policy.margin else "is not"
        return f"{text}; the observed accuracy {fell} lower by more than {points}"
    if comparison.not_worse:
        return f"not worse by more than {points}; better or worse: {text}"
    if needed := comparison.images_needed_not_worse:
        text += f"; to show that it is not worse by more than {points} takes about {needed:,} images"
    return text


def _latency(release: Manifest, policy: Policy) -> Gate:
    """The 95th percentile of one image, measured now: a table of an earlier time or another machine proves nothing."""
    (p95,) = onnx_p95([open_served(release)])
    message = f"{p95:.1f} ms at the 95th percentile, measured on this machine ({this_machine().fingerprint}), "
    limit = policy.max_p95_ms
    if not limit:
        return Gate(name="latency", passed=True, required=False, message=f"{message}no maximum set", value=p95)
    message += f"maximum {limit:g} ms" + (f", {p95 - limit:.3g} ms too slow" if p95 > limit else "")
    return Gate(name="latency", passed=p95 <= limit, message=message, value=p95, limit=limit)


def _golden(release: Manifest, policy: Policy) -> Gate:
    if policy.golden_dir == "none":
        return Gate(name="golden images", passed=True, required=False, message="no folder set")
    paths = sorted(path for path in Path(policy.golden_dir).glob("*/*") if path.is_file())
    if not paths:
        raise DataError(f"There are no golden images in {policy.golden_dir}: put them into one folder for each class.")
    classifier = open_served(release)
    wrong = []
    for path in paths:
        try:
            label = classifier.predict(path).label
        except VitCifarError as error:
            label = str(error)
        if label != path.parent.name:
            wrong.append(f"{path.parent.name}/{path.name} ({label})")
    message = f"{len(wrong)} of {len(paths)} wrong" + (f": {', '.join(wrong[:5])}" if wrong else "")
    return Gate(name="golden images", passed=not wrong, message=message, value=len(wrong), limit=0)


def _approvals(registry: Registry, version: Version, policy: Policy) -> Gate:
    """Approvals of this release by users other than the current one."""
    if not policy.approvals:
        return Gate(name="approvals", passed=True, required=False, message="none required")
    user = current_user()
    others = sorted({approval.who for approval in read_approvals(version)} - {user})
    passed = len(others) >= policy.approvals
    message = f"{len(others)} of {policy.approvals} by users other than {user}"
    message += f" ({', '.join(others)})" if others else ""
    if not passed:
        message += f": ask another to type vitcifar approve {version.number}{registry.model_option} --reason WHY"
    return Gate(name="approvals", passed=passed, message=message, value=len(others), limit=policy.approvals)


def _signature(registry: Registry, version: Version, policy: Policy) -> Gate:
    try:
        signers = check_signature(registry, version, policy)
    except ReleaseError as error:
        return Gate(name="signature", passed=False, message=str(error).rstrip("."))
    message = f"by the key {', '.join(sorted(set(signers)))}" if signers else "none required"
    return Gate(name="signature", passed=True, required=bool(signers), message=message)
