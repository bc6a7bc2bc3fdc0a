"""The command that asks a running server how its versions do, without any label."""

import json
from typing import Any

import click

from vitcifar.cli import format, options
from vitcifar.errors import ServingError, reason_of, redact

TIMEOUT = 30  # seconds


@options.command
@options.option("--url", "http://127.0.0.1:7860", "Server to ask; with a login, http://NAME:PASSWORD@HOST:PORT.")
@options.format_option
def monitor(url: str, output_format: str) -> None:
    """Say how the versions of a running server do: estimated accuracy, confidence, drift, and the challenger.

    It reads the window of the last predictions, of which nobody knows the labels.

    \b
    vitcifar monitor
    vitcifar monitor --url http://ann:secret@photos.example:7860 --format json
    """
    found = read_monitor(url)
    if output_format == "json":
        return click.echo(json.dumps(found, indent=2))
    if not found["versions"]:
        click.echo(f"{found['model']}: nothing was classified since the server has started.", err=True)
    else:
        format.print_table(HEADER, [row(report) for report in found["versions"]])
    for report in found["versions"]:
        for note in report["notes"]:
            click.echo(f"Note: version {report['version']}: {note}", err=True)
    if found["shadow"]:
        print_shadow(found["shadow"])


HEADER = ("version", "images", "estimated accuracy", "95% band", "on test", "not confident", "on test", "drift", "p")


def read_monitor(url: str) -> dict[str, Any]:
    """What a server answers at `/v1/monitor`. Raises ServingError."""
    import requests

    shown = redact(url)
    try:
        with requests.Session() as session:
            session.trust_env = False  # a proxy, or a login of another program
            response = session.get(f"{url.rstrip('/')}/v1/monitor", timeout=TIMEOUT)
        if response.status_code == 401:
            raise ServingError(f"{shown} wants a login: write NAME:PASSWORD@ before the host in --url.")
        if response.status_code == 404:
            raise ServingError(f"{shown} has no monitor: is it vitcifar app, and of this version?")
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return {name: found[name] for name in ("model", "serves", "versions", "shadow")}
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        reason = redact(reason_of(error))
        raise ServingError(f"{shown} cannot be asked ({reason}): start vitcifar app, or name it with --url.") from None


def row(report: dict[str, Any]) -> tuple[str, ...]:
    """The line of a version; what is not known is -."""
    names = ("estimated_accuracy", "test_accuracy", "not_confident", "test_not_confident")
    shares = {name: "-" if report[name] is None else f"{report[name]:.4f}" for name in names}
    low, high = report["estimated_low"], report["estimated_high"]
    p_value = report["drift_p_value"]
    return (
        str(report["version"]),
        str(report["num_images"]),
        shares["estimated_accuracy"],
        "-" if low is None else f"{low:.4f} to {high:.4f}",
        shares["test_accuracy"],
        shares["not_confident"],
        shares["test_not_confident"],
        "-" if report["drift"] is None else ("yes" if report["drift"] else "no"),
        "-" if p_value is None else f"{p_value:.3f}",
    )


def print_shadow(shadow: dict[str, Any]) -> None:
    """What the challenger in the shadow said."""
    if shadow["problem"] or shadow["version"] is None:
        missing = f"No version is {shadow['spec']} besides the one that serves."
        click.echo(f"Note: {shadow['problem'] or missing}", err=True)
    for pair in shadow["pairs"]:
        both = pair["agreed"] + pair["disagreed"]
        share = "-" if pair["agreement"] is None else f"{pair['agreement']:.4f}"
        text = f"{share}, the same label on {pair['agreed']} of {both} images; {pair['dropped']} were not predicted"
        text += f", {pair['failed']} failed" if pair["failed"] else ""
        format.print_field("agreement", f"of version {pair['shadow']} in the shadow with {pair['version']}: {text}")
