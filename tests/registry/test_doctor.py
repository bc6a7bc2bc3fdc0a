"""What killed processes and a damaged store leave behind is found and repaired."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.project import ROOT
from support.releases import add_version, store_release
from support.toys import stored

from vitcifar.cache import cache_dir
from vitcifar.errors import ReleaseError, TrackingError
from vitcifar.registry import lock
from vitcifar.registry.aliases import move_alias, new_event, new_key
from vitcifar.registry.doctor import Finding, diagnose, repair
from vitcifar.registry.registry import Registry


@pytest.fixture
def patient(store: Path, request: pytest.FixtureRequest) -> Iterator[Registry]:
    """A registry of its own for each test, with one version, the champion."""
    name = f"patient-{abs(hash(request.node.name))}"
    add_version(store, "first", name)
    registry = Registry(name)
    move_alias(registry, "champion", 1)
    yield registry
    shutil.rmtree(cache_dir(), ignore_errors=True)


def heal(registry: Registry, *kinds: str) -> list[Finding]:
    """Repair, and require that exactly these kinds are found, all are fixed and nothing is left."""
    found = repair(registry, stale_seconds=0)
    assert tuple(finding.kind for finding in found) == kinds, found
    assert all(finding.fixed for finding in found), found
    assert all(finding.waiting for finding in diagnose(registry, stale_seconds=0))
    for number in registry.aliases().values():
        registry.verify_store(registry.show(number))
        registry.pull(number)
    return found


def test_a_healthy_registry_has_no_findings(patient: Registry) -> None:
    assert diagnose(patient, stale_seconds=0) == []


def test_killed_while_exporting(patient: Registry) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left, ours = (tempfile.mkdtemp(prefix=f"vitcifar-{number}-") for number in (process.pid, 1))
    try:
        heal(patient, "abandoned export")
        assert not Path(left).exists()
        assert Path(ours).exists()  # of a process that lives
    finally:
        shutil.rmtree(ours)


def test_killed_before_the_first_file_was_stored(patient: Registry, store: Path) -> None:
    store_release(store, "second", patient.model_name, files="nothing")
    heal(patient, "orphaned model")
    assert len(patient.list()) == 1


def test_killed_while_files_were_stored(patient: Registry, store: Path) -> None:
    store_release(store, "second", patient.model_name, files="[Mr]*")  # MLmodel and release.json, not the models
    heal(patient, "orphaned model")
    assert len(patient.list()) == 1


def test_killed_between_storing_and_registering(patient: Registry, store: Path) -> None:
    store_release(store, "second", patient.model_name)
    heal(patient, "unregistered release")
    assert patient.pull(2).release_id == "second"
    assert patient.aliases() == {"champion": 1}


def test_killed_before_the_first_version_of_a_name(store: Path) -> None:
    registry = Registry("never-was")
    registry.client.create_registered_model("never-was")
    heal_empty = repair(registry, stale_seconds=0)
    assert [finding.kind for finding in heal_empty] == ["empty model"]
    assert diagnose(registry, stale_seconds=0) == []


def test_killed_after_registering(patient: Registry) -> None:
    model_id = patient.show(1).source.removeprefix("models:/")
    patient.client.delete_logged_model_tag(model_id, "mlflow.modelVersions")
    heal(patient, "unlinked version")
    linked = patient.client.get_logged_model(model_id).tags["mlflow.modelVersions"]
    assert json.loads(linked) == [{"name": patient.model_name, "version": 1}]


def test_killed_while_promoting_and_promoted_again(patient: Registry, store: Path) -> None:
    for name in ("second", "third"):
        add_version(store, name, patient.model_name)
    event = new_event("champion", 1, 2, "promote", "")
    key = new_key("history/champion/", event.when)
    patient.client.set_registered_model_tag(patient.model_name, key, event.to_json())
    patient.client.set_registered_model_alias(patient.model_name, "champion", "2")  # and then it was killed
    move_alias(patient, "champion", 3)
    heal(patient, "unfinished promotion")
    assert [(event.before, event.after, event.done) for event in patient.history()][1:] == [(1, 2, True), (2, 3, True)]
    assert patient.rollback(reason="3 is slow").after == 2


@pytest.mark.parametrize("applied", [False, True])
def test_killed_while_promoting(patient: Registry, store: Path, applied: bool) -> None:
    add_version(store, "second", patient.model_name)
    event = new_event("champion", 1, 2, "promote", "")
    key = new_key("history/champion/", event.when)
    patient.client.set_registered_model_tag(patient.model_name, key, event.to_json())
    if applied:
        patient.client.set_registered_model_alias(patient.model_name, "champion", "2")
    heal(patient, "unfinished promotion")
    assert patient.aliases() == {"champion": 2 if applied else 1}
    assert [event.after for event in patient.history()] == ([1, 2] if applied else [1])


def test_recent_unfinished_work_is_left_alone(patient: Registry, store: Path) -> None:
    store_release(store, "second", patient.model_name, files="[Mr]*")
    event = new_event("champion", 1, 2, "promote", "")
    key = new_key("history/champion/", event.when)
    patient.client.set_registered_model_tag(patient.model_name, key, event.to_json())
    before = dict(patient.client.get_registered_model(patient.model_name).tags)
    found = repair(patient)
    assert [(finding.kind, finding.waiting, finding.fixed) for finding in found] == [
        ("unfinished model", True, False),
        ("unfinished promotion", True, False),
    ]
    assert patient.client.get_registered_model(patient.model_name).tags == before
    heal(patient, "orphaned model", "unfinished promotion")


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
@pytest.mark.parametrize("holder", [2, 3])
def test_moves_recorded_from_the_same_version_become_one_after_the_other(
    patient: Registry, store: Path, holder: int
) -> None:
    """As an older vitcifar, or a server that held up a process for long, leaves them."""
    for name in ("second", "third"):
        add_version(store, name, patient.model_name)
    for number in (2, 3):
        event = dataclasses.replace(new_event("champion", 1, number, "promote", f"to {number}"), done=True)
        key = new_key("mlflow.vitcifar.history/champion/", event.when)
        patient.client.set_registered_model_tag(patient.model_name, key, event.to_json())
    patient.client.set_registered_model_alias(patient.model_name, "champion", str(holder))
    (found,) = heal(patient, "parallel moves")
    assert "1 -> 2" in found.message and "1 -> 3" in found.message
    other = 5 - holder
    moves = [(event.before, event.after, event.reason) for event in patient.history()]
    assert moves[1:] == [(1, other, f"to {other}"), (other, holder, f"to {holder}")]
    assert patient.rollback(reason="slow").after == other


def test_the_lease_of_a_killed_process_is_removed(patient: Registry) -> None:
    """On a server; nobody writes one into a SQLite store."""
    place = lock._Place(patient)
    place._write()
    assert [(one.kind, one.waiting) for one in diagnose(patient)] == [("abandoned lease", True)]
    (found,) = heal(patient, "abandoned lease")
    assert f"process {os.getpid()} on " in found.message
    assert lock.places(patient) == {}


def lose_a_file(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def change_a_file(folder: Path) -> None:
    (folder / "data" / "model.pt2").write_bytes(b"another")


def change_release_json(folder: Path) -> None:
    (folder / "release.json").write_text("{}")


def lose_everything(folder: Path) -> None:
    shutil.rmtree(folder)


DAMAGES = [lose_a_file, change_a_file, change_release_json, lose_everything]


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_version_is_restored_from_the_cache(
    patient: Registry,
    store: Path,
    damage: Callable[[Path], None],
) -> None:
    patient.pull(1, pytorch=True)
    damage(stored(patient, 1, store))
    with pytest.raises(ReleaseError, match=r"is incomplete \(missing or changed"):
        patient.promote(1, "challenger")
    heal(patient, "incomplete version")
    assert patient.aliases() == {"champion": 1}


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_cached_copy_the_alias_moves_back_to_the_last_complete_release(
    patient: Registry,
    store: Path,
    damage: Callable[[Path], None],
) -> None:
    add_version(store, "second", patient.model_name)
    move_alias(patient, "champion", 2)
    shutil.rmtree(cache_dir(), ignore_errors=True)  # as on another machine than the one that registered it
    damage(stored(patient, 2, store))
    heal(patient, "broken version")
    assert patient.aliases() == {"champion": 1}
    assert patient.history()[-1].reason == "doctor: version 2 is not a complete release"
    assert [version.broken is None for version in patient.list()] == [False, True]  # marked, not deleted
    assert patient.resolve("latest") == 1


def test_without_any_complete_release_the_alias_is_dropped(patient: Registry, store: Path) -> None:
    add_version(store, "second", patient.model_name)
    lose_a_file(stored(patient, 1, store))
    heal(patient, "broken version")
    assert patient.aliases() == {}
    assert (patient.history()[-1].kind, patient.history()[-1].after) == ("drop", None)


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
def test_a_version_marked_as_broken_can_be_restored(patient: Registry, store: Path, tmp_path: Path) -> None:
    add_version(store, "second", patient.model_name)
    model = stored(patient, 2, store) / "model.onnx"
    moved = shutil.move(model, tmp_path / "model.onnx")
    heal(patient, "broken version")
    patient.client.set_registered_model_alias(patient.model_name, "champion", "2")
    heal(patient, "broken version")
    assert patient.aliases() == {"champion": 1}
    shutil.move(moved, model)
    heal(patient, "restored version")
    assert patient.show(2).broken is None


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
def test_a_store_whose_folder_is_missing_changes_nothing(patient: Registry, store: Path, tmp_path: Path) -> None:
    add_version(store, "second", patient.model_name)
    store_release(store, "third", patient.model_name)
    patient.client.finalize_logged_model(
        patient.client.search_logged_models(["0"], filter_string="name = 'release'")[0].model_id, "READY"
    )
    everything = stored(patient, 1, store).parent.parent
    elsewhere = shutil.move(everything, tmp_path / "elsewhere")
    try:
        found = repair(patient, stale_seconds=0)
        assert {finding.kind for finding in found} == {"missing store"}
        assert not any(finding.fixed for finding in found)
        assert patient.aliases() == {"champion": 1}
    finally:
        shutil.move(elsewhere, everything)
    heal(patient, "unregistered release")


@pytest.mark.parametrize("workspace", ["server"], indirect=True)
def test_an_unreachable_store_changes_nothing(
    patient: Registry,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The proxy of the files refuses connections; the tracking server itself answers."""
    add_version(store, "second", patient.model_name)
    monkeypatch.setattr(
        Registry, "location", lambda *_: "mlflow-artifacts://127.0.0.1:9/0/models/m/artifacts", raising=True
    )
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for ask in (repair, lambda registry: registry.promote(2), lambda registry: registry.pull(2)):
        with pytest.raises(TrackingError, match=r"The artifact store of .* cannot be used \(no server answers\)"):
            ask(patient)
    assert patient.aliases() == {"champion": 1}


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
def test_a_full_disk_changes_nothing(patient: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor runs where no file can grow beyond a few bytes, as on a full disk."""
    program = (
        "import resource, signal, sys; from vitcifar import tracking; from vitcifar.registry.doctor import repair;"
        "from vitcifar.registry.registry import Registry; tracking.connect(sys.argv[1]);"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200));"
        "repair(Registry(sys.argv[2]), stale_seconds=0)"
    )
    uri = patient.client.tracking_uri
    command = [sys.executable, "-c", program, uri, patient.model_name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "errors.TrackingError: " in done.stderr, done.stderr
    assert patient.aliases() == {"champion": 1}
    assert diagnose(patient, stale_seconds=0) == []


def test_an_unexpected_file_is_deleted(patient: Registry, store: Path) -> None:
    (stored(patient, 1, store) / "code").mkdir()
    (stored(patient, 1, store) / "code" / "more.py").write_text("print('read me')")
    with pytest.raises(ReleaseError, match=r"is incomplete .*code/more\.py"):
        patient.promote(1, "challenger")
    heal(patient, "incomplete version")
    assert not (stored(patient, 1, store) / "code" / "more.py").exists()


def test_a_number_in_a_tag_that_was_edited_is_set_as_in_the_release(patient: Registry) -> None:
    """The number that is shown is that of release.json, before and after."""
    patient.tag(1, "test_accuracy", "0.99")
    patient.tag(1, "serves", None)  # an old version lacks a tag
    (finding,) = diagnose(patient)
    assert (finding.kind, finding.message) == ("changed tag", "it is 0.99, release.json says 0.500")
    assert patient.accuracy(patient.show(1)) == 0.5
    heal(patient, "changed tag")
    assert patient.show(1).tags["test_accuracy"] == "0.500"


def test_an_alias_that_was_deleted_is_not_restored(patient: Registry, store: Path) -> None:
    add_version(store, "second", patient.model_name)
    move_alias(patient, "champion", 2)
    patient.client.delete_registered_model_alias(patient.model_name, "champion")
    heal(patient)
    assert patient.aliases() == {}


def test_an_alias_on_a_foreign_version_moves_back(patient: Registry, store: Path) -> None:
    add_version(store, "second", patient.model_name)
    patient.client.delete_model_version_tag(patient.model_name, "2", "release_digest")
    patient.client.set_registered_model_alias(patient.model_name, "champion", "2")
    heal(patient, "foreign alias")
    assert patient.aliases() == {"champion": 1}


def test_a_version_whose_stored_model_was_deleted_does_not_stop_the_doctor(patient: Registry, store: Path) -> None:
    add_version(store, "second", patient.model_name)
    patient.client.delete_logged_model(patient.show(1).source.removeprefix("models:/"))
    patient.client.delete_logged_model_tag(patient.show(2).source.removeprefix("models:/"), "mlflow.modelVersions")
    found = repair(patient, stale_seconds=0)
    assert [(finding.kind, finding.fixed) for finding in found] == [
        ("unlinked version", True),
        ("deleted model", False),
    ]


def test_an_alias_deleted_with_its_version_moves_back(patient: Registry, store: Path) -> None:
    add_version(store, "second", patient.model_name)
    move_alias(patient, "champion", 2)
    patient.client.delete_model_version(patient.model_name, "2")
    assert patient.aliases() == {}
    heal(patient, "dangling alias")
    assert patient.aliases() == {"champion": 1}


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
def test_a_failed_repair_is_reported(patient: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcifar.registry import doctor

    def fail() -> None:
        raise ReleaseError("no room")

    finding = Finding(kind="k", subject="s", message="bad", fix="mend", action=fail)
    monkeypatch.setattr(doctor, "diagnose", lambda *_args, **_more: [finding])
    (found,) = repair(patient)
    assert (found.fixed, found.message) == (False, "bad; not fixed: no room")
