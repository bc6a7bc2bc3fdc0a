"""The command that signs versions."""

from pathlib import Path

import click

from vitcifar.cli import options


@options.command
@options.option("--version", "latest", "Version number, alias, or latest.")
@options.option("--key", "none", "File of the private key (Ed25519, PEM) to sign with (none = do not sign).")
@options.option(
    "--new-key", "none", "New file for a private key; its public key is written to FILE.pub (none = no new key)."
)
@options.model_name_option
@options.tracking_uri_option
def sign(version: str, key: str, new_key: str, model_name: str, tracking_uri: str) -> None:
    """Sign a version, so that it can be promoted and served where a signature is required.

    Every file is verified first. VITCIFAR_KEY_PASSWORD is the password of an encrypted key.

    \b
    vitcifar sign --new-key release.pem
    vitcifar sign --version 3 --key release.pem
    """
    from vitcifar.registry.signing import sign_version
    from vitcifar.release import signature

    if (key == "none") == (new_key == "none"):
        raise click.UsageError("Type either --key FILE, to sign a version, or --new-key FILE.")
    if new_key != "none":
        public = signature.new_key(Path(new_key))
        click.echo(f"{new_key} is the private key: keep it away from the registry and from servers.")
        click.echo(f"{public} is the public key: {signature.key_text(str(public))}")
        return
    signed, name = sign_version(options.open_registry(model_name, tracking_uri), version, Path(key))
    click.echo(f"{signed.model_name} {signed.number} is signed by the key {name}: release.json {signed.digest}.")
