"""Signed releases: whoever can write to the registry and the store, and has no key, makes nothing that is promoted or
served."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from support.releases import store_release
from support.scores import add_version, scores
from support.toys import stored

from vitcifar import cli
from vitcifar.errors import ConfigError, GateError, ReleaseError
from vitcifar.registry.aliases import move_alias
from vitcifar.registry.approvals import set_policy
from vitcifar.registry.doctor import diagnose
from vitcifar.registry.registry import Registry
from vitcifar.registry.signing import check_signature, sign_version
from vitcifar.release.manifest import sha256_of
from vitcifar.release.signature import REQUIRED, key_text, new_key
from vitcifar.serving import engines
from vitcifar.serving.loaded_model import open_folder, open_version

pytestmark = pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)


@pytest.fixture
def toy(workspace: Path) -> Iterator[Registry]:
    registry = Registry("toy")
    if not registry.list():
        add_version(workspace, "one", scores(360))
        add_version(workspace, "two", scores(360))
    yield registry
    for alias in registry.aliases():
        registry.client.delete_registered_model_alias("toy", alias)
    for key in registry.client.get_registered_model("toy").tags:
        registry.client.delete_registered_model_tag("toy", key)
    for version in registry.list():
        for key in version.tags:
            if key.startswith("release_signature/"):
                registry.tag(version.number, key, None)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


def public(key: Path) -> str:
    return f"{key}.pub"


def refused(registry: Registry, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither promoted, not by force either, nor served by any way."""
    for more in ({}, {"force": True, "reason": "now"}):
        with pytest.raises(
            GateError, match=r"no valid signature.*sign it with vitcifar sign --version \d --key"
        ) as error:
            registry.promote(number, **more)
        assert str(error.value).endswith("An unsigned release cannot be forced: sign it as above.")
    for serve in (open_version, lambda registry, number: engines.ship(registry, registry.show(number))):
        with pytest.raises(ReleaseError, match="no valid signature"):
            serve(registry, number)
    with pytest.raises(ReleaseError, match="no valid signature"):
        mlflow.pyfunc.load_model(f"models:/toy/{number}")
    assert registry.aliases() == {}


def test_without_a_required_key_unsigned_versions_work_as_before(toy: Registry) -> None:
    gate = {gate.name: gate for gate in toy.promote(1).gates}["signature"]
    assert (gate.state, gate.message) == ("not required", "none required")
    assert open_version(toy, "champion").version == 1


def test_a_policy_admits_what_its_key_has_signed(toy: Registry, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = set_policy(toy, "", require_signature=public(key))
    assert change.after["require_signature"] == key_text(public(key))
    refused(toy, 1, monkeypatch)
    new_key(key.with_name("other.pem"))
    sign_version(toy, 1, key.with_name("other.pem"))
    refused(toy, 1, monkeypatch)
    _, name = sign_version(toy, 1, key)
    promotion = toy.promote(1)
    assert {gate.name: gate.message for gate in promotion.gates}["signature"] == f"by the key {name}"
    assert open_version(toy, "champion").version == 1
    assert toy.pull(2).release_id == "two"  # looked at, not served
    with pytest.raises(ConfigError, match="looser policy"):
        set_policy(toy, "", require_signature="none")
    with pytest.raises(GateError, match="looser than the policy"):
        toy.promote(2, require_signature="none")


def test_a_digest_that_was_changed_with_the_files_is_refused(
    toy: Registry, key: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The registry agrees with the files, so without a signature this version would be served."""
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    sign_version(toy, 1, key)
    one, two, digest = stored(toy, 1, workspace), stored(toy, 2, workspace), toy.show(1).tags["release_digest"]
    shutil.move(one, tmp_path / "original")
    try:
        shutil.copytree(two, one)
        toy.tag(1, "release_digest", sha256_of(one / "release.json"))
        toy.verify_store(toy.show(1))
        monkeypatch.setenv(REQUIRED, public(key))
        refused(toy, 1, monkeypatch)
        monkeypatch.delenv(REQUIRED)
        assert open_version(toy, 1).manifest.release_id == "two"
    finally:
        shutil.rmtree(one)
        shutil.move(tmp_path / "original", one)
        toy.tag(1, "release_digest", digest)


def test_a_key_outside_of_the_registry_counts_when_the_policy_is_gone(
    toy: Registry, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_policy(toy, "", require_signature=public(key))
    for name in toy.client.get_registered_model("toy").tags:  # by whoever can write to the registry
        toy.client.delete_registered_model_tag("toy", name)
    assert check_signature(toy, toy.show(1)) == []
    monkeypatch.setenv(REQUIRED, key_text(public(key)))
    refused(toy, 1, monkeypatch)
    new_key(key.with_name("theirs.pem"))
    sign_version(toy, 1, key.with_name("theirs.pem"))
    set_policy(toy, "", require_signature=public(key.with_name("theirs.pem")))
    refused(toy, 1, monkeypatch)
    monkeypatch.delenv(REQUIRED)
    toy.require_signature = public(key)  # as --require-signature of a command
    with pytest.raises(ReleaseError, match="which --require-signature requires"):
        open_version(toy, 1)
    sign_version(toy, 1, key)
    assert open_version(toy, 1).version == 1


def test_a_folder_without_its_registry_has_no_signature(
    toy: Registry, key: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = shutil.copytree(toy.pull(1, pytorch=True).folder, tmp_path / "release")
    assert open_folder(folder).manifest.release_id == "one"
    monkeypatch.setenv(REQUIRED, public(key))
    with pytest.raises(ReleaseError, match="requires a signature, and only the registry has that of"):
        open_folder(folder)
    (folder / "registered_model_meta").write_text("model_name: never\nmodel_version: '1'\n")
    with pytest.raises(ReleaseError, match="requires a signature"):
        open_folder(folder)
    for odd in ("[" * 1000, "a: [", "model_name: x", "- 1"):
        (folder / "registered_model_meta").write_text(odd)
        with pytest.raises(ReleaseError, match="registered_model_meta cannot be read"):
            open_folder(folder)


def test_a_copy_in_another_registered_model_keeps_its_signature(toy: Registry, key: Path) -> None:
    sign_version(toy, 1, key)
    toy.client.copy_model_version("models:/toy/1", "prod")
    prod = Registry("prod")
    prod.require_signature = public(key)
    assert open_version(prod, 1).manifest.release_id == "one"


def test_neither_rollback_nor_doctor_moves_an_alias_to_an_unsigned_version(
    toy: Registry, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        move_alias(toy, "champion", number)
    sign_version(toy, 2, key)
    monkeypatch.setenv(REQUIRED, public(key))
    with pytest.raises(ReleaseError, match="no valid signature"):
        toy.rollback(reason="slow")
    assert "unsigned alias" not in [finding.kind for finding in diagnose(toy)]
    toy.client.set_registered_model_alias("toy", "champion", "1")
    (finding,) = (finding for finding in diagnose(toy) if finding.kind == "unsigned alias")
    assert (finding.subject, finding.action) == ("champion", None)


def test_a_policy_whose_key_is_none_admits_nothing(toy: Registry, key: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The public key nothing.pub cannot be read .*: check --require-signature"):
        set_policy(toy, "", require_signature="nothing.pub")
    set_policy(toy, "", require_signature=public(key))
    (name,) = (name for name in toy.client.get_registered_model("toy").tags if "mlflow.vitcifar.policy/" in name)
    text = toy.client.get_registered_model("toy").tags[name]
    toy.client.set_registered_model_tag("toy", name, text.replace(key_text(public(key)), "/etc/passwd"))
    with pytest.raises(Exception, match=r"requires the key '/etc/passwd', which cannot be read"):
        open_version(toy, 1)


def test_the_command_makes_a_key_and_signs(toy: Registry, tmp_path: Path) -> None:
    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli.main, ["sign", "--model-name", "toy", *words])
        assert result.exit_code == code, result.output
        return result.output

    key = tmp_path / "key.pem"
    assert "is the public key: ed25519:" in run("--new-key", str(key))
    assert "toy 2 is signed by the key" in run("--version", "2", "--key", str(key))
    assert "Type either --key FILE" in run(code=2)
    toy.require_signature = public(key)
    assert open_version(toy, 2).version == 2
    image = tmp_path / "missing.png"
    words = ["predict", str(image), "--version", "1", "--model-name", "toy", "--require-signature", public(key)]
    result = CliRunner().invoke(cli.main, words)
    assert "toy 1 has no valid signature" in result.output and result.exit_code == 1


def test_an_incomplete_release_is_not_signed(toy: Registry, key: Path, workspace: Path) -> None:
    model, digest = store_release(workspace, "part", "toy", files="[Mr]*")
    toy.client.create_model_version("toy", f"models:/{model.model_id}", tags={"release_digest": digest})
    number = toy.resolve("latest")
    try:
        with pytest.raises(ReleaseError, match="is incomplete"):
            sign_version(toy, number, key)
    finally:
        toy.client.delete_model_version("toy", str(number))
