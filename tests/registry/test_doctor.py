"""What a process leaves behind that was killed at each point, and what a damaged store holds: found and fixed."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.releases import add_version, store_release
from support.toys import stored

from vitcifar.errors import ReleaseError, TrackingError
from vitcifar.registry.aliases import new_event, new_key
from vitcifar.registry.doctor import Finding, diagnose, repair
from vitcifar.registry.registry import Registry
from vitcifar.release.cache import cache_dir


@pytest.fixture
def patient(store: Path, request: pytest.FixtureRequest) -> Iterator[Registry]:
    """A registry of its own for each test, with one version, the champion."""
    name = f"patient-{abs(hash(request.node.name))}"
    add_version(store, "first", name)
    registry = Registry(name)
    registry.promote(1)
    yield registry
    shutil.rmtree(cache_dir(), ignore_errors=True)


def heal(registry: Registry, *kinds: str) -> list[Finding]:
    """Repair, and hold that just these were found, that all were fixed and that nothing is left."""
    found = repair(registry, settled_seconds=0)
    assert tuple(finding.kind for finding in found) == kinds, found
    assert all(finding.fixed for finding in found), found
    assert all(finding.waiting for finding in diagnose(registry, settled_seconds=0))
    for number in registry.aliases().values():
        registry.verify_store(registry.show(number))
        registry.pull(number)
    return found


def test_a_healthy_registry_is_waiting(patient: Registry) -> None:
    assert diagnose(patient, settled_seconds=0) == []


def test_killed_while_exporting(patient: Registry) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left, ours = (tempfile.mkdtemp(prefix=f"vitcifar-{number}-") for number in (process.pid, 1))
    try:
        heal(patient, "unfinished export")
        assert not Path(left).exists()
        assert Path(ours).exists()  # of a process that lives
    finally:
        shutil.rmtree(ours)


def test_killed_before_the_first_file_was_stored(patient: Registry, store: Path) -> None:
    store_release(store, "second", patient.model_name, files="nothing")
    heal(patient, "half-stored model")
    assert len(patient.list()) == 1


def test_killed_while_files_were_stored(patient: Registry, store: Path) -> None:
    store_release(store, "second", patient.model_name, files="[Mr]*")  # MLmodel and release.json, not the models
    heal(patient, "half-stored model")
    assert len(patient.list()) == 1


def test_killed_between_storing_and_registering(patient: Registry, store: Path) -> None:
    store_release(store, "second", patient.model_name)
    heal(patient, "unregistered release")
    assert patient.pull(2).release_id == "second"
    assert patient.aliases() == {"champion": 1}


def test_killed_before_the_first_version_of_a_name(store: Path) -> None:
    registry = Registry("never-was")
    registry.client.create_registered_model("never-was")
    heal_empty = repair(registry, settled_seconds=0)
    assert [finding.kind for finding in heal_empty] == ["empty model"]
    assert diagnose(registry, settled_seconds=0) == []


def test_killed_after_registering(patient: Registry) -> None:
    model_id = patient.show(1).source.removeprefix("models:/")
    patient.client.delete_logged_model_tag(model_id, "mlflow.modelVersions")
    heal(patient, "unlinked version")


def test_killed_while_promoting_and_promoted_again(patient: Registry, store: Path) -> None:
    for name in ("second", "third"):
        add_version(store, name, patient.model_name)
    event = new_event("champion", 1, 2, "promote", "")
    patient.client.set_registered_model_tag(patient.model_name, new_key(event), event.to_json())
    patient.client.set_registered_model_alias(patient.model_name, "champion", "2")  # and then it was killed
    patient.promote(3)
    heal(patient, "unfinished promotion")
    assert [(event.before, event.after, event.done) for event in patient.history()][1:] == [(1, 2, True), (2, 3, True)]
    assert patient.rollback(reason="3 is slow").after == 2


@pytest.mark.parametrize("came", [False, True])
def test_killed_while_promoting(patient: Registry, store: Path, came: bool) -> None:
    add_version(store, "second", patient.model_name)
    event = new_event("champion", 1, 2, "promote", "")
    patient.client.set_registered_model_tag(patient.model_name, new_key(event), event.to_json())
    if came:
        patient.client.set_registered_model_alias(patient.model_name, "champion", "2")
    heal(patient, "unfinished promotion")
    assert patient.aliases() == {"champion": 2 if came else 1}
    assert [event.after for event in patient.history()] == ([1, 2] if came else [1])


def test_what_is_young_may_still_be_at_work(patient: Registry, store: Path) -> None:
    store_release(store, "second", patient.model_name, files="[Mr]*")
    event = new_event("champion", 1, 2, "promote", "")
    patient.client.set_registered_model_tag(patient.model_name, new_key(event), event.to_json())
    before = dict(patient.client.get_registered_model(patient.model_name).tags)
    found = repair(patient)
    assert [(finding.kind, finding.waiting, finding.fixed) for finding in found] == [
        ("new model", True, False),
        ("unfinished promotion", True, False),
    ]
    assert patient.client.get_registered_model(patient.model_name).tags == before
    heal(patient, "half-stored model", "unfinished promotion")


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
@pytest.mark.parametrize("mismatch", DAMAGES)
def test_a_damaged_version_is_brought_back_from_the_cache(
    patient: Registry,
    store: Path,
    mismatch: Callable[[Path], None],
) -> None:
    patient.pull(1, pytorch=True)
    mismatch(stored(patient, 1, store))
    with pytest.raises(ReleaseError, match="missing or changed in the store"):
        patient.promote(1, "challenger")
    heal(patient, "damaged version")
    assert patient.aliases() == {"champion": 1}


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
@pytest.mark.parametrize("mismatch", DAMAGES)
def test_without_a_copy_the_alias_goes_back_to_the_last_whole_release(
    patient: Registry,
    store: Path,
    mismatch: Callable[[Path], None],
) -> None:
    add_version(store, "second", patient.model_name)
    patient.promote(2)
    mismatch(stored(patient, 2, store))
    heal(patient, "broken version")
    assert patient.aliases() == {"champion": 1}
    assert patient.history()[-1].reason == "doctor: version 2 is not a whole release"
    assert [version.broken is None for version in patient.list()] == [False, True]  # put aside, not deleted
    assert patient.resolve("latest") == 1


def test_without_any_whole_release_no_version_holds_the_alias(patient: Registry, store: Path) -> None:
    add_version(store, "second", patient.model_name)
    lose_a_file(stored(patient, 1, store))
    heal(patient, "broken version")
    assert patient.aliases() == {}
    assert (patient.history()[-1].kind, patient.history()[-1].after) == ("drop", None)


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
def test_a_version_that_was_put_aside_can_come_back(patient: Registry, store: Path, tmp_path: Path) -> None:
    add_version(store, "second", patient.model_name)
    model = stored(patient, 2, store) / "model.onnx"
    kept = shutil.move(model, tmp_path / "model.onnx")
    heal(patient, "broken version")
    patient.client.set_registered_model_alias(patient.model_name, "champion", "2")
    heal(patient, "broken version")
    assert patient.aliases() == {"champion": 1}
    shutil.move(kept, model)
    heal(patient, "mended version")
    assert patient.show(2).broken is None


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
def test_a_store_whose_folder_is_not_there_is_no_loss(patient: Registry, store: Path, tmp_path: Path) -> None:
    add_version(store, "second", patient.model_name)
    store_release(store, "third", patient.model_name)
    patient.client.finalize_logged_model(
        patient.client.search_logged_models(["0"], filter_string="name = 'release'")[0].model_id, "READY"
    )
    everything = stored(patient, 1, store).parent.parent
    elsewhere = shutil.move(everything, tmp_path / "elsewhere")
    try:
        found = repair(patient, settled_seconds=0)
        assert {finding.kind for finding in found} == {"store away"}
        assert not any(finding.fixed for finding in found)
        assert patient.aliases() == {"champion": 1}
    finally:
        shutil.move(elsewhere, everything)
    heal(patient, "unregistered release")


@pytest.mark.parametrize("workspace", ["server"], indirect=True)
def test_a_store_that_does_not_answer_is_no_loss(
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
        with pytest.raises(TrackingError, match="does not give its files"):
            ask(patient)
    assert patient.aliases() == {"champion": 1}


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
def test_a_full_disk_is_no_loss(patient: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor runs where no file can grow beyond a few bytes, as on a full disk."""
    program = (
        "import resource, signal, sys; from vitcifar import tracking; from vitcifar.registry.doctor import repair;"
        "from vitcifar.registry.registry import Registry; tracking.connect(sys.argv[1]);"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200));"
        "repair(Registry(sys.argv[2]), settled_seconds=0)"
    )
    uri = patient.client.tracking_uri
    command = [sys.executable, "-c", program, uri, patient.model_name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "TrackingError: The store does not give its files" in done.stderr, done.stderr
    assert patient.aliases() == {"champion": 1}
    assert diagnose(patient, settled_seconds=0) == []


def test_a_file_that_is_not_of_the_release_is_found_and_taken_away(patient: Registry, store: Path) -> None:
    (stored(patient, 1, store) / "code").mkdir()
    (stored(patient, 1, store) / "code" / "more.py").write_text("print('read me')")
    with pytest.raises(ReleaseError, match=r"in the store and not of the release: code/more\.py"):
        patient.promote(1, "challenger")
    heal(patient, "damaged version")
    assert not (stored(patient, 1, store) / "code" / "more.py").exists()


def test_an_alias_that_somebody_took_away_stays_away(patient: Registry, store: Path) -> None:
    add_version(store, "second", patient.model_name)
    patient.promote(2)
    patient.client.delete_registered_model_alias(patient.model_name, "champion")
    heal(patient)
    assert patient.aliases() == {}


def test_an_alias_on_what_is_no_release_goes_back(patient: Registry, store: Path) -> None:
    add_version(store, "second", patient.model_name)
    patient.client.delete_model_version_tag(patient.model_name, "2", "release_digest")
    patient.client.set_registered_model_alias(patient.model_name, "champion", "2")
    heal(patient, "foreign holder")
    assert patient.aliases() == {"champion": 1}


def test_a_version_whose_stored_model_was_deleted_does_not_stop_the_doctor(patient: Registry, store: Path) -> None:
    add_version(store, "second", patient.model_name)
    patient.client.delete_logged_model(patient.show(1).source.removeprefix("models:/"))
    patient.client.delete_logged_model_tag(patient.show(2).source.removeprefix("models:/"), "mlflow.modelVersions")
    found = repair(patient, settled_seconds=0)
    assert [(finding.kind, finding.fixed) for finding in found] == [
        ("unlinked version", True),
        ("unkept version", False),
    ]


def test_an_alias_that_went_with_its_version_comes_back(patient: Registry, store: Path) -> None:
    add_version(store, "second", patient.model_name)
    patient.promote(2)
    patient.client.delete_model_version(patient.model_name, "2")
    assert patient.aliases() == {}
    heal(patient, "dangling alias")
    assert patient.aliases() == {"champion": 1}


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
def test_a_repair_that_fails_is_said(patient: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcifar.registry import doctor

    def fail() -> None:
        raise ReleaseError("no room")

    finding = Finding(kind="k", subject="s", message="bad", fix="mend", action=fail)
    monkeypatch.setattr(doctor, "diagnose", lambda *_args, **_more: [finding])
    (found,) = repair(patient)
    assert (found.fixed, found.message) == (False, "bad; not fixed: no room")
