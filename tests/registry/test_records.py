"""Records are hidden from MLflow's pages, read from old and new places, and moved without loss."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from support.old_release import add_old_version
from support.scores import add_version, scores

from vitcifar.errors import RegistryError
from vitcifar.registry import records
from vitcifar.registry.aliases import move_alias, new_event, read_events
from vitcifar.registry.approvals import approve, read_approvals, set_policy
from vitcifar.registry.benchmark import read_old_tables
from vitcifar.registry.doctor import diagnose, repair
from vitcifar.registry.registry import Registry
from vitcifar.registry.verdicts import read_verdicts


def everything(registry: Registry) -> dict[str, Any]:
    """What every reader makes of the records."""
    versions = registry.list()
    return {
        "history": registry.history(),
        "policy": registry.policy(),
        "verdicts": {version.number: read_verdicts(version) for version in versions},
        "approvals": {version.number: read_approvals(version) for version in versions},
        "tables": {version.number: read_old_tables(version) for version in versions},
    }


def stored(registry: Registry) -> tuple[dict[str, str], dict[int, dict[str, str]]]:
    """The tags in MLflow: of the registered model, and of each version."""
    tags = registry.client.get_registered_model(registry.model_name).tags
    return tags, {version.number: dict(version.tags) for version in registry.read_stored()[0]}


def long_tags(registry: Registry) -> dict[str, str]:
    """What MLflow's pages show and people do not read: the pages hide a model's tags with MLflow's prefix alone."""
    model, versions = stored(registry)
    shown = {key: value for key, value in model.items() if not key.startswith("mlflow.")}
    shown |= {f"{number} {key}": value for number, tags in versions.items() for key, value in tags.items()}
    return {key: value for key, value in shown.items() if value.startswith("{") or len(value) > 64}


@pytest.fixture(scope="module")
def old(workspace: Path) -> Registry:
    add_old_version(workspace / "old-1", evaluation=scores(360))
    add_old_version(workspace / "old-2", evaluation=scores(392, seed=2))
    registry = Registry("toy")
    registry.client.set_registered_model_alias("toy", "champion", "1")
    return registry


def test_the_doctor_moves_the_records_of_an_old_store_and_loses_none(old: Registry) -> None:
    before = everything(old)
    assert before["verdicts"][2] and before["tables"][1] and before["history"] and len(long_tags(old)) == 5
    (finding,) = [one for one in diagnose(old, stale_seconds=0) if one.kind == "shown records"]
    assert finding.message == "MLflow's pages show 5 records of an older vitcifar"
    assert [one.fixed for one in repair(old, stale_seconds=0) if one.kind == "shown records"] == [True]
    assert long_tags(old) == {} and everything(old) == before
    assert not [one for one in diagnose(old, stale_seconds=0) if one.kind == "shown records"]


def test_a_move_that_was_cut_off_between_copy_and_deletion_goes_on(old: Registry) -> None:
    before = everything(old)
    hidden = next(key for key in stored(old)[0] if "history/champion" in key)
    plain = hidden.removeprefix(records.HIDDEN)
    old.client.set_registered_model_tag("toy", plain, stored(old)[0][hidden])
    assert everything(old) == before
    records.hide(old)
    assert plain not in stored(old)[0] and everything(old) == before


def test_a_move_of_an_old_process_that_is_not_done_stays_where_it_will_write_again(old: Registry) -> None:
    event = new_event("challenger", None, 2, "promote", "of an old process")
    key = "history/challenger/20990101T000000.000000Z-0"
    old.client.set_registered_model_tag("toy", key, event.to_json())
    records.hide(old)
    assert key in stored(old)[0] and not old.history("challenger")[0].done
    records.replace(old, key, None)
    assert old.history("challenger") == [] and key not in stored(old)[0]


def test_a_new_store_shows_a_few_short_tags_alone(workspace: Path) -> None:
    for name, right in (("one", 360), ("two", 200)):
        add_version(workspace, name, scores(right), model_name="short", config={"data": "folder", "data_dir": "a/b"})
    registry = Registry("short")
    approve(registry, 1, "looks fine")
    set_policy(registry, "checked", approvals=0, min_accuracy=0.6)
    registry.promote(1, reason="the first")
    with pytest.raises(Exception, match="was not promoted"):
        registry.promote(2)
    model, versions = stored(registry)
    assert {key for key in model if not key.startswith("mlflow.")} == {"policy/current"}
    assert model["policy/current"] == "min_accuracy 0.6"
    digests = {number: tags.pop("release_digest") for number, tags in versions.items()}
    assert all(len(digest) == 64 for digest in digests.values())
    short = {"dataset": "b", "serves": "onnx-fp32"}
    assert versions[1] == short | {"test_accuracy": "0.900", "gates": "champion: passed 4/4"}
    assert versions[2] == short | {
        "test_accuracy": "0.500",
        "gates": "champion: rejected 2/5, failed accuracy, champion, calibration",
    }
    assert [len(read_verdicts(version)) for version in registry.list()] == [1, 1]
    assert [approval.reason for approval in read_approvals(registry.show(1))] == ["looks fine"]


def test_an_older_vitcifar_stops_at_a_policy_that_it_cannot_see(workspace: Path) -> None:
    registry = Registry("policed")
    set_policy(registry, "strict", require="better")
    tags = registry.client.get_registered_model("policed").tags
    with pytest.raises(ValueError, match="Expecting value"):  # as 0.1 reads every tag policy/…
        [json.loads(value) for key, value in tags.items() if key.startswith("policy/")]
    assert registry.policy().require == "better"


def test_an_unreadable_hidden_policy_stops_promotions(workspace: Path) -> None:
    registry = Registry("broken-policy")
    set_policy(registry, "strict", require="better")
    registry.client.set_registered_model_tag("broken-policy", f"{records.HIDDEN}policy/x", "{")
    with pytest.raises(RegistryError, match="cannot be read"):
        registry.policy()


def test_moves_by_an_old_and_a_new_process_are_one_history(old: Registry) -> None:
    move_alias(old, "canary", 1)
    event = new_event("canary", 1, 2, "promote", "by an old process")
    done = json.dumps({**json.loads(event.to_json()), "done": True})
    old.client.set_registered_model_tag("toy", f"history/canary/{event.when}-1", done)
    move_alias(old, "canary", 2)
    assert [(one.before, one.after) for one in old.history("canary")][:2] == [(None, 1), (1, 2)]
    client = mlflow.MlflowClient()
    assert read_events(records.of_model(client.get_registered_model("toy").tags), "canary")
