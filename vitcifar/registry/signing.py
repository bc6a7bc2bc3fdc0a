"""Which versions may be promoted and served: those that a required key has signed, if one is required."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vitcifar.errors import RegistryError, ReleaseError
from vitcifar.release import signature

if TYPE_CHECKING:
    from vitcifar.registry.policy import Policy
    from vitcifar.registry.registry import Registry, Version

POLICY = "the policy of the model"


def sign_version(registry: "Registry", spec: str | int, key_file: Path) -> tuple["Version", str]:
    """Sign a version, whose files are verified first; returns it and the id of the key.

    Raises ConfigError for a file that is no key, ReleaseError when the release is incomplete.
    """
    key = signature.read_private(key_file)
    version = registry.show(spec)
    registry.verify_store(version)
    name, value = signature.make_signature(registry.digest_of(version), key)
    registry.tag(version.number, name, value)
    return version, name.removeprefix(signature.TAG_PREFIX)


def required_signatures(registry: "Registry", policy: "Policy") -> dict[str, str]:
    """Who requires a signature -> the public keys of which one must have signed, a file or a text.

    Whoever can write to the registry can change the policy there, but neither the environment nor the command line.
    """
    required = {
        "--require-signature": registry.require_signature,
        signature.REQUIRED: os.environ.get(signature.REQUIRED, ""),
        POLICY: policy.require_signature,
    }
    return {origin: text for origin, text in required.items() if text not in ("", "none")}


def check_signature(registry: "Registry", version: "Version", policy: "Policy | None" = None) -> list[str]:
    """The ids of the keys that have signed a version as required; none if nothing is required.

    Raises ReleaseError without a signature that is required, ConfigError for a required key that cannot be read.
    """
    policy, signers = policy or registry.policy(), []
    for origin, text in required_signatures(registry, policy).items():
        if origin == POLICY and not text.startswith(signature.TEXT_PREFIX):
            raise RegistryError(
                f"The policy of {registry.model_name} requires the key {text[:80]!r}, which cannot be read: set "
                "another with vitcifar policy set --require-signature FILE."
            )
        keys = signature.read_public(text)
        signer = signature.signer_of(registry.digest_of(version), version.tags, keys)
        if signer is None:
            name, wanted = f"{version.model_name} {version.number}", " or ".join(keys)
            raise ReleaseError(
                f"{name} has no valid signature of its release by the key {wanted}, which {origin} requires: sign it "
                f"with vitcifar sign --version {version.number} --key FILE{registry.model_option}, or choose another."
            )
        signers.append(signer)
    return signers
