"""What users decide, on each kind of store: the policy of a model, and approvals of a version."""

import json
import os
import pwd
from pathlib import Path

import pytest
from support.scores import add_version, scores

from vitcifar.errors import ConfigError, GateError, RegistryError
from vitcifar.registry import aliases
from vitcifar.registry.approvals import approve, read_approvals, set_policy
from vitcifar.registry.policy import Policy, read_changes
from vitcifar.registry.registry import Registry


@pytest.fixture(scope="module")
def toy(workspace: Path) -> Registry:
    """A model with two equal versions."""
    for name in ("one", "two"):
        add_version(workspace, name, scores(360))
    return Registry("toy")


def act_as(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's clients send this user to a server; with SQLite the user is that of the operating system."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam(user).pw_uid)


def test_the_policy_of_a_model_counts_for_every_promotion_and_its_changes_are_recorded(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry("strict")
    assert registry.policy() == Policy()
    act_as("root", monkeypatch)
    set_policy(registry, "", min_accuracy=0.95)  # before the first version
    add_version(workspace, "strict", scores(360), model_name="strict")
    with pytest.raises(GateError, match=r"accuracy: 0\.9000 .* minimum 0\.9500"):
        registry.promote(1)
    with pytest.raises(ConfigError, match=r"A looser policy \(min_accuracy\) needs a reason: add --reason"):
        set_policy(registry, " ", min_accuracy=0.9)
    with pytest.raises(ConfigError, match="already has these limits"):
        set_policy(registry, "", min_accuracy=0.95)
    with pytest.raises(ConfigError, match="There is no folder nowhere of golden images"):
        set_policy(registry, "", golden_dir="nowhere")
    set_policy(registry, "few images", min_accuracy=0.85, margin=0.01)
    assert registry.policy() == Policy(min_accuracy=0.85, margin=0.01)
    first, second = read_changes(registry.tags())
    assert (first.who, first.loosened, first.before) == ("root", (), {"min_accuracy": 0.0})
    assert (second.reason, second.loosened) == ("few images", ("min_accuracy",))
    assert second.summary == "margin 0.02 -> 0.01, min_accuracy 0.95 -> 0.85 (looser)"
    assert not registry.promote(1).event.forced


def test_a_policy_that_cannot_be_read_is_not_replaced_by_a_looser_one(workspace: Path) -> None:
    registry = Registry("later")
    change = set_policy(registry, "", approvals=1)
    later = json.loads(change.to_json()) | {"when": "9999", "after": {"signature": "required"}}
    registry.client.set_registered_model_tag("later", "policy/9999-x", json.dumps(later))
    with pytest.raises(RegistryError, match=r"policy of the model, .* cannot be read .*: update vitcifar"):
        registry.policy()


def test_a_promotion_waits_for_approvals_of_other_users(toy: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    act_as("root", monkeypatch)
    set_policy(toy, "", approvals=1)
    with pytest.raises(RegistryError, match="needs a reason"):
        approve(toy, 1, " ")
    approve(toy, 1, "I trained it")
    with pytest.raises(GateError, match=r"approvals: 0 of 1 by users other than root: .* vitcifar approve 1") as error:
        toy.promote(1)
    assert "--model-name toy --reason WHY" in str(error.value)
    act_as("daemon", monkeypatch)
    assert approve(toy, "1", "checked on night images").who == aliases.current_user() == "daemon"
    assert [(one.who, one.reason) for one in read_approvals(toy.show(1))] == [
        ("root", "I trained it"),
        ("daemon", "checked on night images"),
    ]
    act_as("root", monkeypatch)
    gate = {gate.name: gate for gate in toy.promote(1).gates}["approvals"]
    assert (gate.value, gate.limit) == (1, 1)
    assert gate.message == "1 of 1 by users other than root (daemon)"


def test_an_approval_of_another_release_does_not_count(toy: Registry) -> None:
    approval = {"who": "daemon", "when": "2026-01-31T12:00:00Z", "reason": "", "digest": "0" * 64}
    toy.tag(2, "approval/20260131-0", json.dumps(approval))
    toy.tag(2, "approval/20260131-1", "[]")
    assert read_approvals(toy.show(2)) == []


def test_the_environment_does_not_say_who_the_user_is(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    assert aliases.current_user() == "user 4000000"
