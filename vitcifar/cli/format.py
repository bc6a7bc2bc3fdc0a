"""What the commands print: fields, tables, differences, gates and moves of an alias. Results go to stdout."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vitcifar.experiments.seeds import SeedRuns
    from vitcifar.experiments.sweep_report import SweepResult
    from vitcifar.registry.aliases import Event
    from vitcifar.registry.diff import Difference
    from vitcifar.registry.policy import Gate
    from vitcifar.registry.registry import Version
    from vitcifar.registry.repair import Finding
    from vitcifar.release.latency import LatencyTable


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


def print_seeds(result: "SeedRuns") -> None:
    for run in result.runs:
        accuracies = [f"{split} {run.metrics[f'{split}/accuracy']:.4f}" for split in ("validation", "test")]
        print_field(f"seed {run.seed}", f"{'  '.join(accuracies)}  run {run.run_id}")
    mean = result.intervals["test/accuracy"]
    interval = f"95% interval over the seeds {mean.low:.4f} to {mean.high:.4f}, Student's t"
    print_field("mean", f"{mean.mean:.4f} ({interval})")
    print_field("parent run", result.run_id)
    print_field("released", f"seed {result.best.seed}, the best on validation")


def print_sweep(result: "SweepResult") -> None:
    best = result.best
    assert best is not None  # a sweep without a complete trial has raised
    counts = f"{result.num_complete} complete, {result.num_pruned} pruned, {result.num_failed} failed"
    print_field("trials", counts)
    print_field("parent run", result.run_id)
    print_field("best", f"trial {best.number}, validation accuracy {best.accuracy:.4f}, run {best.run_id}")
    for name, value in best.settings.items():
        print_field(f"  {name}", value)
    click.echo(best.command)


def print_versions(versions: Iterable["Version"]) -> None:
    rows = []
    for version in versions:
        accuracy = "-" if version.test_accuracy is None else f"{version.test_accuracy:.4f}"
        aliases = ", ".join(version.aliases) or "-"
        rows.append((str(version.number), aliases, accuracy, version.created, version.run_id))
    print_table(("version", "aliases", "accuracy", "created", "run"), rows)


def print_history(events: Iterable["Event"]) -> None:
    header = ("when", "who", "what", "alias", "from", "to", "gates", "reason")
    print_table(header, [history_row(event) for event in events])


def history_row(event: "Event") -> tuple[str, ...]:
    required = [gate["passed"] for gate in event.gates if gate.get("required", True)]
    gates = f"{sum(required)}/{len(required)}{' forced' if event.forced else ''}" if required else "-"
    what = event.kind if event.done else f"{event.kind} (unfinished)"
    ends = (str(number or "-") for number in (event.before, event.after))
    return f"{event.when[:19]}Z", event.who, what, event.alias, *ends, gates, event.reason or "-"


def print_latency(table: "LatencyTable") -> None:
    machine = table.machine
    click.echo(f"{machine.processor}, {machine.num_cores} cores, {' '.join(machine.flags)}")
    click.echo(f"{', '.join(f'{name} {number}' for name, number in machine.versions.items())}  [{machine.fingerprint}]")
    header, *rows = table.rows_as_text()
    print_table(header, rows)


def print_differences(differences: Sequence["Difference"]) -> None:
    for row in differences:
        click.echo(f"{row.section:<11}  {row.name}: {short(row.before)} -> {short(row.after)}")
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
