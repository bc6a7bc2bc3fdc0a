"""Signatures of releases: Ed25519 (RFC 8032) over the digest of release.json, which covers every file of a release.

A signature is a tag of the version, named after its key. It names neither model nor version: a copy of the version in
another registered model (MLflow's `copy_model_version`) keeps it. Keys are files in PEM, as
`openssl genpkey -algorithm ed25519` writes them; a public key is also the text ed25519:BASE64.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vitcifar.errors import ConfigError

REQUIRED = "VITCIFAR_REQUIRE_SIGNATURE"  # public keys, as `read_public` takes them: one must have signed what is served
PASSWORD = "VITCIFAR_KEY_PASSWORD"  # of an encrypted private key
TAG_PREFIX = "release_signature/"  # and the id of the key
TEXT_PREFIX = "ed25519:"
PEM_END = b"-----END PUBLIC KEY-----"
NEW_KEY = "type vitcifar sign --new-key FILE, which writes FILE and FILE.pub"

PublicKeys = Mapping[str, Ed25519PublicKey]  # by their ids


def new_key(path: Path) -> Path:
    """Write a new private key, readable by this user alone, and its public key beside it; returns the latter's path.

    Raises ConfigError for files that exist, or that cannot be written.
    """
    key, public = Ed25519PrivateKey.generate(), path.with_name(f"{path.name}.pub")
    pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    spki = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        for file, mode, content in (
            (path, 0o600, key.private_bytes(*pkcs8)),
            (public, 0o644, key.public_key().public_bytes(*spki)),
        ):
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
                opened.write(content)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}): name another with --new-key.") from error
    return public


def read_private(path: Path) -> Ed25519PrivateKey:
    """A private key from a PEM file; an encrypted one needs the variable `PASSWORD`. Raises ConfigError."""
    password = os.environ.get(PASSWORD)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password.encode() if password else None)
    except OSError as error:
        raise ConfigError(f"The key {path} cannot be read ({error.strerror}): check --key.") from error
    except TypeError:
        problem = "is encrypted: set" if not password else "is not encrypted: unset"
        raise ConfigError(f"The key {path} {problem} {PASSWORD}.") from None
    except (ValueError, UnsupportedAlgorithm):
        wrong = f", or {PASSWORD} is not its password" if password else ""
        raise ConfigError(f"{path} is not a private key in PEM{wrong}: {NEW_KEY}.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is a key of another kind than Ed25519: {NEW_KEY}.")
    return key


def read_public(text: str) -> PublicKeys:
    """Public keys by their ids: from a PEM file, which may hold several, or from a text, ed25519:BASE64,ed25519:BASE64.

    Raises ConfigError.
    """
    if text.startswith(TEXT_PREFIX):
        return _by_id([_from_text(part.strip()) for part in text.split(",")])
    try:
        content = Path(text).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The public key {text} cannot be read ({reason}): check --require-signature.") from error
    if b"PRIVATE KEY-----" in content:
        raise ConfigError(f"{text} is a private key: keep it, and name the file of its public key, such as {text}.pub.")
    keys = []
    try:
        for part in content.split(PEM_END)[:-1]:
            key = serialization.load_pem_public_key(part.lstrip() + PEM_END + b"\n")
            if not isinstance(key, Ed25519PublicKey):
                raise ValueError
            keys.append(key)
    except (ValueError, UnsupportedAlgorithm):
        keys = []
    if not keys:
        raise ConfigError(f"{text} holds no public keys of Ed25519 in PEM: {NEW_KEY}.")
    return _by_id(keys)


def key_text(text: str) -> str:
    """Public keys, from a file or a text, as one text, which needs no file; "none" stays. Raises ConfigError."""
    if text == "none":
        return text
    raw = sorted(_raw(key) for key in read_public(text).values())
    return ",".join(f"{TEXT_PREFIX}{base64.b64encode(one).decode()}" for one in raw)


def key_id(key: Ed25519PublicKey) -> str:
    """What names a key: the start of the sha256 of its 32 bytes."""
    return hashlib.sha256(_raw(key)).hexdigest()[:16]


def make_signature(digest: str, key: Ed25519PrivateKey) -> tuple[str, str]:
    """The tag, its name and value, that signs the release with this digest of release.json."""
    return TAG_PREFIX + key_id(key.public_key()), base64.b64encode(key.sign(_message(digest))).decode()


def signer_of(digest: str, tags: Mapping[str, str], keys: PublicKeys) -> str | None:
    """The id of one of the keys that has signed this digest, by the tags of a version; None without one."""
    for name, key in keys.items():
        try:
            key.verify(base64.b64decode(tags[TAG_PREFIX + name], validate=True), _message(digest))
        except (KeyError, ValueError, InvalidSignature):  # no signature, no base64, of other bytes
            continue
        return name
    return None


def _message(digest: str) -> bytes:
    """What is signed: never the bytes that the same key could sign for another purpose."""
    return f"vitcifar/release.json signature 1\nsha256: {digest}\n".encode()


def _by_id(keys: list[Ed25519PublicKey]) -> PublicKeys:
    return {key_id(key): key for key in keys}


def _from_text(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text.removeprefix(TEXT_PREFIX), validate=True))
    except (binascii.Error, ValueError):
        raise ConfigError(f"{text[:80]!r} is not a public key: type the name of its file, or ed25519:BASE64.") from None


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
