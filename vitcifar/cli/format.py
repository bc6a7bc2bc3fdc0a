"""What several commands print, on stdout: fields, tables, differences, gates and moves of an alias."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from vitcifar.registry.policy import read_changes, read_policy

if TYPE_CHECKING:
    from vitcifar.registry.aliases import Event
    from vitcifar.registry.diff import Difference
    from vitcifar.registry.policy import Gate, PolicyChange
    from vitcifar.registry.registry import Version
    from vitcifar.registry.repair import Finding


def print_field(name: str, value: object) -> None:
    click.echo(f"{name:<14} {value}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns: numbers (with `-` for a missing one) to the right, text to the left."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["".join(column) for column in zip(*rows, strict=True)]
    right = [not text.strip("-.%0123456789") and any(map(str.isdigit, text)) for text in texts]
    for line in lines:
        cells = [f"{cell:{'>' if r else '<'}{width}}" for cell, width, r in zip(line, widths, right, strict=True)]
        click.echo("  ".join(cells).rstrip())


def print_versions(versions: Sequence["Version"], accuracy: Callable[["Version"], float | None]) -> None:
    """Print versions with their test accuracy, as `Registry.accuracy` reads it; why one is not known on stderr."""

    def read(version: "Version") -> str:
        try:
            found = accuracy(version)
        except Exception as error:  # the libraries of object stores raise anything, and the list needs none of them
            click.echo(f"Note: the accuracy of version {version.number} is not known. {error}", err=True)
            return "-"
        return "-" if found is None else f"{found:.4f}"

    with ThreadPoolExecutor(8) as pool:
        accuracies = pool.map(read, versions)
    rows = [
        (str(version.number), ", ".join(version.aliases) or "-", text, version.created, version.run_id)
        for version, text in zip(versions, accuracies, strict=True)
    ]
    print_table(("version", "aliases", "accuracy", "created", "run"), rows)


def print_history(events: Iterable["Event"], changes: Iterable["PolicyChange"] = ()) -> None:
    rows = []
    for event in events:
        required = [gate["passed"] for gate in event.gates if gate.get("required", True)]
        gates = f"{sum(required)}/{len(required)}{' overridden' if event.forced else ''}" if required else "-"
        what = event.kind if event.done else f"{event.kind} (unfinished)"
        ends = (str(number or "-") for number in (event.before, event.after))
        rows.append((event.when, event.who, what, event.alias, *ends, gates, event.reason or "-"))
    for change in changes:
        reason = f"{change.summary}{': ' if change.reason else ''}{change.reason}"
        rows.append((change.when, change.who, "policy", "-", "-", "-", "-", reason))
    rows = [(f"{when[:19]}Z", *rest) for when, *rest in sorted(rows)]
    print_table(("when", "who", "what", "alias", "from", "to", "gates", "reason"), rows)


def print_policy(tags: Mapping[str, str]) -> None:
    """The policy in a registered model's tags, and the last change of each limit."""
    last = {name: change for change in read_changes(tags) for name in change.before}
    for name, value in dataclasses.asdict(read_policy(tags)).items():
        change = last.get(name)
        origin = f"{change.who}, {change.when[:10]}{': ' * bool(change.reason)}{change.reason}" if change else "default"
        click.echo(f"{name:<14} {value!s:<20} {origin}")


def print_differences(differences: Sequence["Difference"]) -> None:
    for row in differences:
        before, after = short(row.before), short(row.after)
        before, after = (before, after) if before != after else (str(row.before), str(row.after))
        click.echo(f"{row.section:<11}  {row.name}: {before} -> {after}")
    if not differences:
        click.echo("No differences.")


def short(value: Any) -> str:
    """One side of a difference: digests are shortened, floats rounded to 6 digits."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,64}", value):
        return f"{value[:16]}…"
    return "absent" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def print_gates(gates: Iterable["Gate"]) -> None:
    for gate in gates:
        click.echo(f"{gate.state:<12}  {gate.name:<13}  {gate.message}")


def print_event(event: "Event") -> None:
    if event.before == event.after:
        click.echo(f"{event.alias} already points to version {event.after}: nothing was changed.")
    elif event.after is None:
        click.echo(f"{event.alias} was removed from version {event.before}.")
    else:
        before = "" if event.before is None else f" (was {event.before})"
        click.echo(f"{event.alias} now points to version {event.after}{before}.")


def print_findings(findings: Iterable["Finding"]) -> None:
    for finding in findings:
        state = "fixed" if finding.fixed else "no action" if finding.waiting else "to do"
        click.echo(f"{finding.kind:<20}  {finding.subject}: {finding.message}. {state}: {finding.fix}")
