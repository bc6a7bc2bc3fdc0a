"""What several commands print, on stdout: fields, tables, differences, gates and moves of an alias."""

import dataclasses
import datetime
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitcifar.errors import printable, redact
from vitcifar.registry.policy import read_changes, read_policy

if TYPE_CHECKING:
    from vitcifar.cache import Cached
    from vitcifar.pipeline import Trained
    from vitcifar.registry.aliases import Event
    from vitcifar.registry.diff import Difference
    from vitcifar.registry.policy import Gate, PolicyChange
    from vitcifar.registry.registry import Version
    from vitcifar.registry.repair import Finding

NAME_WIDTH = 13  # of fields
MAX_CELL = 2000  # characters
LEAST_TEXT = 12  # columns of a cell with several words
UNBROKEN = 100_000  # columns, where no terminal breaks the lines
COLOURS = {"passed": "green", "FAILED": "bold red", "not required": "dim"}


def print_field(name: str, value: object, *, err: bool = False) -> None:
    """Print a value behind its name; on a terminal, a long one goes on below itself, except a word.

    A long word, such as an address, is broken by the terminal, which opens and copies it whole.
    """
    if len(str(value)) > shutil.get_terminal_size().columns - NAME_WIDTH - 2 and " " not in str(value):
        click.echo(f"{name:<{NAME_WIDTH}}  {printable(str(value))}", err=err)
    else:
        print_rows([(f"{name:<{NAME_WIDTH}}", str(value))], err=err)


def print_fields(fields: Mapping[str, object], *, err: bool = False) -> None:
    """Print values behind their names."""
    for name, value in fields.items():
        print_field(name, value, err=err)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns: numbers (with `-` for a missing one) to the right, text to the left."""
    texts = ["".join(column) for column in zip(*rows, strict=True)]
    right = [not text.strip("-.%0123456789") and any(map(str.isdigit, text)) for text in texts]
    print_rows([header, *rows], right=right)


def print_rows(rows: Sequence[Sequence[str]], *, right: Sequence[bool] = (), err: bool = False) -> None:
    """Print aligned columns; on a terminal they fit it, broken between words, and FAILED and passed have colours.

    Columns of single words that are wider than the terminal together are broken by it, and nothing is left out.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [[shortened(printable(cell)) for cell in row] for row in rows]
    terminal = (sys.stderr if err else sys.stdout).isatty()
    width = shutil.get_terminal_size().columns if terminal else UNBROKEN
    table, least = Table.grid(padding=(0, 2, 0, 0), pad_edge=False), 0
    for index, column in enumerate(zip(*rows, strict=True)):
        is_word = not any(" " in cell.strip() for cell in column)
        table.add_column(justify="right" if right and right[index] else "left", no_wrap=is_word, overflow="fold")
        least += 2 + (max(map(cell_len, column)) if is_word else LEAST_TEXT)
    for row in rows:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    printed, width = io.StringIO(), max(width, least)
    Console(file=printed, width=width, force_terminal=terminal, color_system="auto" if terminal else None).print(table)
    for line in printed.getvalue().splitlines():
        click.echo(line.rstrip(), err=err)


def shortened(text: str) -> str:
    """A text without its middle, if it is longer than any that is worth reading in a table."""
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 40]}…{text[-39:]}"


def print_cached(releases: Sequence["Cached"]) -> None:
    """Print the releases in the cache."""
    rows = [
        (
            entry.path.name[:16],
            f"{entry.num_bytes / 1e6:.1f}",
            f"{datetime.datetime.fromtimestamp(entry.used):%F %T}",
            "open" if entry.open else "",
        )
        for entry in releases
    ]
    if rows:
        print_table(("digest", "MB", "last used", ""), rows)


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
        (str(version.number), ", ".join(version.aliases) or "-", text, _minutes(version.created), version.run_id)
        for version, text in zip(versions, accuracies, strict=True)
    ]
    print_table(("version", "aliases", "accuracy", "created (UTC)", "run"), rows)


def _minutes(when: str) -> str:
    """2026-01-31T12:00:00Z -> 2026-01-31 12:00"""
    return when[:16].replace("T", " ")


def print_trained(trained: "Trained", *, verbose: bool) -> None:
    """The result of a run, and on stderr where to look at it."""
    passed = [gate.passed for gate in trained.gates if gate.required]
    alias = f" ({trained.alias})" if trained.alias else ""
    fields = {
        "test accuracy": trained.evaluation.accuracy_text(),
        "version": f"{trained.model_name} {trained.version}{alias}",
        "gates": f"{sum(passed)} of {len(passed)} passed" if passed else "none required",
        "run": trained.run_id,
    }
    if trained.budget:
        fields["latency"] = trained.budget
    if verbose:
        fields |= {
            "calibration": trained.evaluation.calibration_text(),
            "weights": f"sha256 {trained.weights_sha256}",
        }
    print_fields(fields)
    if verbose:
        print_gates(trained.gates)
    print_places(trained.run_id, trained.folder)
    print_field("TensorBoard", f"tensorboard --logdir {shlex.quote(str(trained.event_files.parent))}", err=True)


def print_places(run_id: str, folder: Path) -> None:
    """Print on stderr where to look at a run whose files are in a folder; it has no report without an analysis."""
    if (folder / "report.html").is_file():
        print_field("report", folder / "report.html", err=True)
    print_field("MLflow", where_in_mlflow(run_id), err=True)


def where_in_mlflow(run_id: str) -> str:
    """The address of a run on a tracking server, or the command that opens MLflow on a local store."""
    from vitcifar.stores import run_url
    from vitcifar.uris import sqlite_path

    if address := run_url(run_id):
        return address
    uri = os.environ["MLFLOW_TRACKING_URI"]  # as `tracking.connect` left it
    default = uri.startswith("sqlite:///") and Path(sqlite_path(uri)) == Path("mlflow.db").absolute()
    return f"mlflow ui --backend-store-uri {'sqlite:///mlflow.db' if default else shlex.quote(redact(uri))}"


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
    rows: list[tuple[str, str, str]] = []
    last = {name: change for change in read_changes(tags) for name in change.before}
    for name, value in dataclasses.asdict(read_policy(tags)).items():
        change = last.get(name)
        origin = f"{change.who}, {change.when[:10]}{': ' * bool(change.reason)}{change.reason}" if change else "default"
        rows.append((name, str(value), origin))
    print_rows(rows)


def print_differences(differences: Sequence["Difference"]) -> None:
    rows = []
    for row in differences:
        before, after = short(row.before), short(row.after)
        before, after = (before, after) if before != after else (str(row.before), str(row.after))
        rows.append((f"{row.section:<11}", f"{row.name}: {before} -> {after}"))
    print_rows(rows or [("No differences.",)])


def short(value: Any) -> str:
    """One side of a difference: digests are shortened, floats rounded to 6 digits."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,64}", value):
        return f"{value[:16]}…"
    return "absent" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def print_gates(gates: Iterable["Gate"]) -> None:
    print_rows([(gate.state, gate.name, gate.message) for gate in gates])


def print_event(event: "Event") -> None:
    if event.before == event.after:
        click.echo(f"{event.alias} already points to version {event.after}: nothing was changed.")
    elif event.after is None:
        click.echo(f"{event.alias} was removed from version {event.before}.")
    else:
        before = "" if event.before is None else f" (was {event.before})"
        click.echo(f"{event.alias} now points to version {event.after}{before}.")


def print_findings(findings: Iterable["Finding"]) -> None:
    rows = []
    for finding in findings:
        state = "fixed" if finding.fixed else "no action" if finding.waiting else "to do"
        rows.append((finding.kind, f"{finding.subject}: {finding.message}. {state}: {finding.fix}"))
    print_rows(rows)
