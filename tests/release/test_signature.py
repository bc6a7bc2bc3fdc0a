"""Keys and signatures: files in PEM, texts, and what is refused with a sentence."""

import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from vitcifar.errors import ConfigError
from vitcifar.release.signature import (
    PASSWORD,
    TAG_PREFIX,
    key_text,
    make_signature,
    new_key,
    read_private,
    read_public,
    signer_of,
)

DIGEST = "ab" * 32


def test_a_new_key_signs_and_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    public = new_key(tmp_path / "key.pem")
    assert public == tmp_path / "key.pem.pub"
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    keys = read_public(str(public))
    name, value = make_signature(DIGEST, read_private(tmp_path / "key.pem"))
    assert [name] == [TAG_PREFIX + key for key in keys]
    assert signer_of(DIGEST, {name: value}, keys) == next(iter(keys))
    assert signer_of("cd" * 32, {name: value}, keys) is None
    for wrong in ("", "no base64!", value[:-8], "é"):
        assert signer_of(DIGEST, {name: wrong}, keys) is None
    with pytest.raises(ConfigError, match=r"key.pem cannot be written \(File exists\): name another with --new-key"):
        new_key(tmp_path / "key.pem")


def test_a_signature_by_another_key_under_the_name_of_this_one_is_none(tmp_path: Path) -> None:
    keys = read_public(str(new_key(tmp_path / "one.pem")))
    new_key(tmp_path / "two.pem")
    _, value = make_signature(DIGEST, read_private(tmp_path / "two.pem"))
    assert signer_of(DIGEST, {TAG_PREFIX + next(iter(keys)): value}, keys) is None


def test_a_text_and_a_file_of_several_keys_hold_the_same_keys(tmp_path: Path) -> None:
    files = [new_key(tmp_path / name) for name in ("one", "two")]
    (tmp_path / "both").write_text("release keys\n" + "".join(file.read_text() for file in files))
    text = key_text(str(tmp_path / "both"))
    assert text.count("ed25519:") == 2
    assert read_public(text).keys() == read_public(str(tmp_path / "both")).keys()
    assert key_text(text) == text and key_text("none") == "none"


def test_keys_of_openssl_are_read_also_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "key.pub")
    openssl("pkey", "-in", "key.pem", "-aes256", "-passout", "pass:secret", "-out", "locked.pem")
    keys = read_public(str(tmp_path / "key.pub"))
    with pytest.raises(ConfigError, match=f"is encrypted: set {PASSWORD}"):
        read_private(tmp_path / "locked.pem")
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(ConfigError, match="is not its password"):
        read_private(tmp_path / "locked.pem")
    monkeypatch.setenv(PASSWORD, "secret")
    name, value = make_signature(DIGEST, read_private(tmp_path / "locked.pem"))
    assert signer_of(DIGEST, {name: value}, keys)


def test_what_is_no_key_is_one_sentence(tmp_path: Path) -> None:
    new_key(tmp_path / "key.pem")
    curve = ec.generate_private_key(ec.SECP256R1())
    pem, spki = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    private = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "curve").write_bytes(curve.private_bytes(*private))
    (tmp_path / "curve.pub").write_bytes(curve.public_key().public_bytes(pem, spki))
    (tmp_path / "text").write_text("-----BEGIN PUBLIC KEY-----\nxx\n-----END PUBLIC KEY-----\n")
    for name, sentence in {
        "key.pem": "is a private key: keep it",
        "curve.pub": "no public keys of Ed25519",
        "text": "no public keys of Ed25519",
        "missing": "cannot be read",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            read_public(str(tmp_path / name))
    for name, sentence in {"curve": "of another kind", "text": "not a private key", "missing": "cannot be"}.items():
        with pytest.raises(ConfigError, match=sentence):
            read_private(tmp_path / name)
    for text in ("ed25519:", "ed25519:xx", "ed25519:é", "ed25519:" + "A" * 100, "a\0b"):
        with pytest.raises(ConfigError):
            read_public(text)
