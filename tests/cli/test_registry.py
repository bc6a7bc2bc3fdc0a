"""What the commands of the registry print: the policy, its changes, approvals and overridden gates."""

import os
import pwd
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.scores import add_version, scores
from support.toys import settle

from vitcifar import cli, tracking


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.main, [*words, "--model-name", "toy"])
    assert result.exit_code == code, result.output
    return re.sub(" +", " ", result.output)


def test_a_policy_is_set_shown_and_overridden_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settle(tmp_path, monkeypatch)
    user = pwd.getpwuid(os.geteuid()).pw_name
    tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    add_version(tmp_path, "one", scores(360))
    shown = run("policy", "show")
    assert "require not-clearly-worse default" in shown and "approvals 0 default" in shown
    assert "type vitcifar policy set" in run("policy", "show", "--margin", "0.1", code=2)
    assert re.search(rf"approvals 1 {user}, 20\d\d-", run("policy", "set", "--approvals", "1"))
    assert "needs a reason: add --reason" in run("policy", "set", "--margin", "0.1", code=1)
    assert ": small test split\n" in run("policy", "set", "--margin", "0.1", "--reason", "small test split")
    refused = run("promote", "1", code=1)
    assert f"FAILED approvals 0 of 1 by users other than {user}" in refused
    assert run("approve", "1", "--reason", "checked").startswith(f"{user} approved version 1 (release ")
    run("promote", "1", "--force", "yes", "--reason", "nobody else is here")
    history = run("history")
    assert f"{user} promote champion - 1 4/5 overridden nobody else is here" in history
    assert f"{user} policy - - - - margin 0.02 -> 0.1 (looser): small test split" in history
    assert "## Approvals" in run("show", "1") and f"champion, {user}: overridden: nobody" in run("show", "1")
