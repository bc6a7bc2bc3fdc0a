"""What users decide and the gates go by, as records: the policy of a model, and approvals of a version."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow

from vitcifar.errors import ConfigError, RegistryError, redact
from vitcifar.registry import policy, records
from vitcifar.registry.aliases import create_model, new_key, sign
from vitcifar.registry.policy import PolicyChange
from vitcifar.release.signature import key_text
from vitcifar.tracking import reaching

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry, Version

PREFIX = "approval/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Approval:
    """One user's approval of the release with this digest."""

    who: str
    when: str  # UTC, ISO 8601
    reason: str
    digest: str


def approve(registry: "Registry", spec: str | int, reason: str) -> Approval:
    """Record the current user's approval of a version, whose files are verified first.

    Raises RegistryError without a reason, ReleaseError when the release is incomplete.
    """
    if not reason.strip():
        raise RegistryError("An approval needs a reason: add --reason.")
    version = registry.show(spec)
    registry.verify_store(version)
    approval = Approval(**sign(reason), digest=registry.digest_of(version))
    text = json.dumps(dataclasses.asdict(approval), sort_keys=True, ensure_ascii=False)
    registry.tag(version.number, new_key(PREFIX, approval.when), text)
    return approval


def read_approvals(version: "Version") -> list[Approval]:
    """The approvals of a version's release, in order of time."""
    approvals = []
    for key in sorted(key for key in version.tags if key.startswith(PREFIX)):
        try:
            approval = Approval(**json.loads(version.tags[key]))
        except (ValueError, TypeError):
            continue  # not written by vitcifar: it approves nothing
        if approval.digest == version.digest:
            approvals.append(approval)
    return approvals


def set_policy(registry: "Registry", reason: str, **limits: Any) -> PolicyChange:
    """Change the limits of a model's policy and record the change; the model need not have a version yet.

    Raises ConfigError for an invalid limit, when nothing changes, and without a reason for a looser limit.
    """
    if (folder := limits.get("golden_dir", "none")) != "none":
        if not Path(folder).is_dir():
            raise ConfigError(f"There is no folder {folder} of golden images: check --golden-dir.")
        limits["golden_dir"] = str(Path(folder).absolute())
    if (url := limits.get("feedback", "none")) != redact(url):
        raise ConfigError(
            f"Who reads the registry reads its policy, so {redact(url)} is not recorded: leave the login out of "
            "--feedback; variables of the database's driver can give it."
        )
    if "require_signature" in limits:
        limits["require_signature"] = key_text(limits["require_signature"])
    before = registry.policy()
    after = dataclasses.replace(before, **limits)
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    changed = {name: old[name] for name in old if old[name] != new[name]}
    if not changed:
        raise ConfigError("The policy already has these limits: give another value, such as --require not-worse.")
    loosened = after.looser_than(before)
    if loosened and not reason.strip():
        raise ConfigError(f"A looser policy ({', '.join(loosened)}) needs a reason: add --reason.")
    change = PolicyChange(**sign(reason), before=changed, after=new)
    with reaching(mlflow.get_tracking_uri()):
        create_model(registry.client, registry.model_name)
        records.set_policy_tag(registry, after)  # first: an older vitcifar does not see the record, and must stop
        records.write(registry, new_key(policy.PREFIX, change.when), change.to_json())
    return change
