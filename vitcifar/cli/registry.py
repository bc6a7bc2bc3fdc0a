"""Commands on registered versions: list, promote and maintain them."""

import dataclasses
import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from vitcifar.cli import format, options
from vitcifar.errors import GateError
from vitcifar.registry.policy import Policy, read_changes

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry


@options.registry_command
def versions(registry: "Registry") -> None:
    """List the versions of a model with aliases, test accuracy, creation time and run.

    \b
    vitcifar versions
    """
    rows = registry.list()
    if not rows:
        registry.resolve("latest")  # raises, naming the models that exist
    format.print_versions(rows, registry.accuracy)


@options.registry_command
@click.argument("version")
@options.format_option
def show(registry: "Registry", version: str, output_format: str) -> None:
    """Show the model card of VERSION, or everything recorded as JSON.

    \b
    vitcifar show champion
    vitcifar show 3 --format json
    """
    from vitcifar.registry.card import model_card

    row = registry.show(version)
    release = registry.pull(row.number)
    if output_format == "json":
        everything = {"version": dataclasses.asdict(row), "release": dataclasses.asdict(release)}
        click.echo(json.dumps(everything, indent=2, default=str))
    else:
        click.echo(model_card(row, release))


@options.registry_command
@click.argument("before")
@click.argument("after")
def diff(registry: "Registry", before: str, after: str) -> None:
    """Show how version AFTER differs from version BEFORE in config, data, metrics, checks, code and files.

    \b
    vitcifar diff 1 champion
    """
    from vitcifar.registry.diff import compare_releases

    format.print_differences(compare_releases(registry.pull(before), registry.pull(after)))


@options.registry_command
@click.argument("version")
@options.alias_option
@options.policy_options
@options.yes_or_no("--force", "Override failed gates; requires --reason.")
@options.reason_option
def promote(registry: "Registry", version: str, alias: str, force: bool, reason: str, **limits: Any) -> None:
    """Point an alias at VERSION if it passes every gate.

    The model's policy sets the limits of the gates; a stricter one can be given here, a looser one needs --force. Each
    gate is recorded on the version with its value, limit and result.

    \b
    vitcifar promote 2 --reason "better on night images"
    vitcifar promote 3 --require better --max-p95-ms 200
    vitcifar promote 4 --force yes --reason "the champion fails on every truck"
    """
    limits = options.given(limits)
    Policy(**limits)  # invalid ones are named before anything is read
    try:
        done = registry.promote(version, alias, force=force, reason=reason, **limits)
    except GateError as error:
        format.print_gates(error.gates)
        raise click.ClickException(error.summary) from error
    format.print_gates(done.gates)
    format.print_event(done.event)


@options.registry_command
@click.argument("version")
@click.option("--reason", required=True, help="Reason, recorded with the approval.")
def approve(registry: "Registry", version: str, reason: str) -> None:
    """Approve VERSION for promotion, as the current user.

    A policy with --approvals wants this of users other than the one who promotes.

    \b
    vitcifar approve 3 --reason "checked on the night images"
    """
    from vitcifar.registry.approvals import approve as record

    approval = record(registry, version, reason)
    click.echo(f"{approval.who} approved version {registry.resolve(version)} (release {approval.digest[:16]}…).")


@options.registry_command
@click.argument("action", type=click.Choice(["show", "set"]))
@options.policy_options
@options.reason_option
def policy(registry: "Registry", action: str, reason: str, **limits: Any) -> None:
    """Show or set the policy of a model: what its gates require of every promotion.

    The policy is recorded on the registered model, with who changed it, when and why. A looser limit needs --reason.

    \b
    vitcifar policy show
    vitcifar policy set --require not-worse --max-p95-ms 200
    vitcifar policy set --approvals 1 --golden-dir golden
    """
    from vitcifar.registry.approvals import set_policy

    limits = options.given(limits)
    if action == "set":
        set_policy(registry, reason, **limits)
    elif limits or reason:
        raise click.UsageError("policy show takes no limits: type vitcifar policy set.")
    elif not registry.list():
        click.echo(f"Note: {registry.model_name} has no version yet.", err=True)
    format.print_policy(registry.tags())


@options.registry_command
@options.alias_option
@options.option("--to", "previous", "Version to point to, which must have held the alias before.")
@click.option("--reason", required=True, help="Reason, recorded in the history.")
def rollback(registry: "Registry", alias: str, to: str, reason: str) -> None:
    """Point an alias back to the version that held it before.

    \b
    vitcifar rollback --reason "wrong on every truck since Monday"
    """
    target = None if to in ("previous", "former") else to  # `former` as in vitcifar 0.1
    format.print_event(registry.rollback(alias, to=target, reason=reason))


@options.registry_command
@options.option("--alias", "all", "An alias, or all.")
def history(registry: "Registry", alias: str) -> None:
    """List every move of an alias and change of the policy: when, who, from and to what, gates and reason.

    \b
    vitcifar history --alias champion
    """
    everything = registry.history()
    events = [event for event in everything if alias in ("all", event.alias)]
    changes = read_changes(registry.tags()) if alias == "all" else []
    if not events and not changes:
        known = ", ".join(sorted({event.alias for event in everything})) or "none"
        moved = "an alias" if alias == "all" else repr(alias)
        raise click.ClickException(f"No move of {moved} is recorded; aliases with a history: {known}.")
    format.print_history(events, changes)


@options.registry_command
@options.yes_or_no("--repair", "Repair the problems found.")
@options.option("--stale-seconds", 3600.0, "Treat unfinished work older than this as abandoned, in seconds.", minimum=0)
def doctor(registry: "Registry", repair: bool, stale_seconds: float) -> None:
    """Find incomplete versions, missing or changed files and aliases that point at incomplete releases.

    \b
    vitcifar doctor
    vitcifar doctor --repair yes
    """
    from vitcifar.registry import doctor

    check = doctor.repair if repair else doctor.diagnose
    before = len(registry.history()) if registry.list() else 0
    findings = check(registry, stale_seconds=stale_seconds)
    format.print_findings(findings)
    exists = bool(registry.list())
    for event in registry.history()[before:] if exists else ():
        format.print_event(event)
    problems = [finding for finding in findings if not finding.fixed and not finding.waiting]
    if problems:
        repairable = not repair and any(finding.action for finding in problems)
        stale = f" --stale-seconds {stale_seconds:g}" if stale_seconds != doctor.STALE_SECONDS else ""
        command = f"vitcifar doctor --repair yes{stale}{registry.model_option}"
        advice = f"to repair them, type {command}" if repairable else "act by hand, see above"
        raise click.ClickException(f"Problems found: {len(problems)}; {advice}.")
    if not findings and not exists:
        registry.resolve("latest")  # raises, naming the models that exist
    click.echo("OK: every alias points to a complete release.")


@options.registry_command
@options.option("--keep", 5, "Number of newest versions to keep.", minimum=1)
@options.yes_or_no("--delete", "Delete the listed versions.")
def prune(registry: "Registry", keep: int, delete: bool) -> None:
    """List old versions that can be deleted; --delete yes deletes them.

    A version with an alias, or that a rollback would return to, is never deleted.

    \b
    vitcifar prune --keep 5
    vitcifar prune --keep 5 --delete yes
    """
    from vitcifar.registry.prune import delete as delete_version
    from vitcifar.registry.prune import prune

    old = prune(registry, keep=keep)
    if not old:
        return click.echo("Nothing to delete: every older version is in use by an alias or as a rollback target.")
    format.print_versions(old, registry.accuracy)
    if delete:
        for version in old:
            delete_version(registry, version)
        uri = shlex.quote(registry.client.tracking_uri)
        store = uri if uri.startswith("sqlite") else "DATABASE, on the machine of the server"
        command = f"mlflow gc --tracking-uri {uri} --backend-store-uri {store}"
        click.echo(f"Deleted {len(old)}. To free the disk space, type {command}", err=True)
    else:
        click.echo("Nothing was deleted yet: add --delete yes.", err=True)


@options.registry_command
@options.version_option
@options.option("--threads", "all", "Thread counts, e.g. 1,2 (all = 1 and every core).", callback=options.thread_counts)
@options.option("--runs", 30, "Timed predictions per row.", minimum=2)
def benchmark(registry: "Registry", version: str, threads: tuple[int, ...], runs: int) -> None:
    """Measure size, accuracy and latency of every format of a version on this machine.

    The table (cold start, p50, p95 and p99 by format and threads) is stored with the run of the version.

    \b
    vitcifar benchmark --version champion --threads 1,2
    """
    from vitcifar.experiments.versions import recorded_splits, tested_on
    from vitcifar.registry.benchmark import benchmark

    release = registry.pull(version)
    assert release.version is not None
    splits = recorded_splits(release)
    dataset = splits.test if splits and tested_on(release, splits) else None
    if dataset is None:
        problem = "have changed" if splits else "cannot be read"
        recorded = "the accuracies are those recorded with the version"
        click.echo(f"Note: the test images of version {release.version} {problem}; {recorded}.", err=True)
    table = benchmark(registry, release.version, dataset=dataset, threads=threads, num_runs=runs)
    machine = table.machine
    click.echo(f"{machine.processor}, {machine.num_cores} cores, {' '.join(machine.flags)}")
    click.echo(f"{', '.join(f'{name} {number}' for name, number in machine.versions.items())}  [{machine.fingerprint}]")
    header, *rows = table.rows_as_text()
    format.print_table(header, rows)
