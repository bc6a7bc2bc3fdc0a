"""The front door: `vitcifar`, `python -m mlproject` and, through MLproject, `mlflow run .` are this one program.

It reads options, turns what a user can fix into one line, and prints. It holds no loop and loads nothing heavy
before a command needs it.
"""

import dataclasses
import json
import os
import re
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vitcifar import __version__
from vitcifar.config import PRESETS, TrainConfig, groups, resolve
from vitcifar.errors import DataError, GateError, VitCifarError

TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING}
DATA_SETTINGS = ("data", "data_dir", "train_per_class", "validation_per_class", "test_per_class", "data_seed")
ANALYSIS_SETTINGS = ("analysis", "corruption_images", "ood")
# A sweep trains and chooses on validation: it has nothing to examine, to resume or to release.
SWEEP_SETTINGS = tuple(
    name
    for name, heading in groups().items()
    if heading not in ("Evaluation", "Release") and name not in ("resume", "run_name")
)
FROM_PRESET = "preset"  # the value that leaves a setting to the preset, as MLproject writes it


class Command(click.Command):
    """A command whose options may be written with underscores: MLflow writes -P a_b=1 as --a_b 1."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        return ["-h", "--help"]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        def dashes(word: str) -> str:
            name, equals, value = word.partition("=")
            return name.replace("_", "-") + equals + value if word.startswith("--") else word

        return super().parse_args(ctx, [dashes(word) for word in args])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings, rows = groups(), {}  # type: ignore[var-annotated]
        for param in self.get_params(ctx):
            heading = headings[param.name or ""] if isinstance(param.type, Setting) else "Options"
            if record := param.get_help_record(ctx):
                rows.setdefault(heading, []).append(record)
        for heading, records in sorted(rows.items(), key=lambda row: row[0] == "Options"):
            with formatter.section(heading):
                formatter.write_dl(records)


class Program(click.Group):
    """A group of commands in the order of the road, that ends in one line for what a user can fix."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VitCifarError as error:
            raise click.ClickException(str(error)) from error


class Setting(click.ParamType):
    """The value of a config field, or the word `preset`."""

    def __init__(self, field: dataclasses.Field) -> None:
        choices = field.metadata["choices"]
        self.inner: click.ParamType = click.Choice(choices) if choices else TYPES[field.type]  # type: ignore[index,assignment]
        self.name = self.inner.name

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self.inner.get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == FROM_PRESET else self.inner.convert(value, param, ctx)


class Threads(click.ParamType):
    """Numbers separated by commas, or the word `all`."""

    name = "threads"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple) or value == "all":
            return value if isinstance(value, tuple) else ()
        counts = value.split(",")
        if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
            self.fail(f"{value!r} is not all, or numbers such as 1,2.", param, ctx)
        return tuple(int(count) for count in counts)


def settings(*names: str, default: str = "") -> Callable[[Callable], Callable]:
    """Options for the named fields of TrainConfig (all when none is named), each saying its default."""

    def decorate(command: Callable) -> Callable:
        for field in reversed(dataclasses.fields(TrainConfig)):
            if not names or field.name in names:
                help = f"{field.metadata['help']}  [{default or default_of(field)}]"
                option = click.option(f"--{field.name.replace('_', '-')}", type=Setting(field), help=help)
                command = option(command)
        return command

    return decorate


preset_option = click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="cifar10",
    help="Settings to start from; every other option overrides it.",
)


def default_of(field: dataclasses.Field) -> str:
    """A field's default, and the presets that differ from it."""
    others = [f"{name}: {values[field.name]}" for name, values in PRESETS.items() if field.name in values]
    return "; ".join([f"default: {field.default}", *others])


def given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


tracking_uri = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="sqlite:///mlflow.db",
    show_envvar=True,
    help="MLflow's tracking store and registry: sqlite:///FILE or http://HOST:PORT.",
)
model_name = click.option("--model-name", default="vitcifar", help="Name in the registry.")
version_option = click.option("--version", default="champion", help="A version's number, an alias, or latest.")
format_option = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", help="What is printed."
)
version_argument = click.argument("version")
alias_option = click.option("--alias", default="champion", help="The alias that moves, such as champion or challenger.")
reason_option = click.option("--reason", default="none", help="Why, for the history (none = no reason given).")


def registry_of(tracking_uri: str, model_name: str) -> Any:
    from vitcifar import tracking
    from vitcifar.registry.registry import Registry

    tracking.connect(tracking_uri, new=False)
    return Registry(model_name)


def words(text: str) -> str:
    """An option's text; none = nothing."""
    return "" if text == "none" else text


def names_of(text: str) -> tuple[str, ...]:
    """An option's names, separated by commas."""
    return tuple(name.strip() for name in words(text).split(",") if name.strip())


def print_score(score: Any) -> None:
    click.echo(
        f"test accuracy  {score.accuracy:.4f}  "
        f"(95 % interval {score.accuracy_low:.4f} to {score.accuracy_high:.4f}, {score.num_images} images)"
    )


def print_differences(differences: Any) -> None:
    for row in differences:
        click.echo(f"{row.section:<11}  {row.name}: {shown(row.before)} -> {shown(row.after)}")
    if not differences:
        click.echo("They do not differ.")


def shown(value: Any) -> str:
    """One side of a difference."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,64}", value):
        return f"{value[:16]}…"
    return "nothing" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def print_gates(gates: Any) -> None:
    for gate in gates:
        state = ("passed" if gate.required else "not asked") if gate.passed else "FAILED"
        click.echo(f"{state:<9}  {gate.name:<15}  {gate.message}")


def print_event(event: Any) -> None:
    if event.before == event.after:
        return click.echo(f"{event.alias} means version {event.after} already: nothing was moved.")
    before = "nothing" if event.before is None else f"version {event.before}"
    click.echo(f"{event.alias} now means version {event.after}, before that {before}.")


@click.group(
    cls=Program,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 110,
    },
)
@click.version_option(__version__, prog_name="vitcifar")
def main() -> None:
    """Fine-tune, prove, register and serve vision transformers, tracked by MLflow.

    \b
    vitcifar train --preset digits        the whole road in about a minute, no downloads
    vitcifar app --version champion       the page that serves what was promoted
    """
    # Threads that wait for each other spin, and torch stands still when other programs want the cores. A step of
    # vit_tiny (torch 2.13, 2 cores) beside two of them: over 1000 ms, so bounded 40 ms; alone 15 ms either way.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does, never leaves it RUNNING
    warnings.formatwarning = lambda message, *_, **__: f"Note: {message}\n"


@main.command()
@preset_option
@settings()
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    help="How many seeds are trained, from --seed on, as runs under one parent; the best on validation is released.",
)
@tracking_uri
def train(preset: str, seeds: int, tracking_uri: str, **options: Any) -> None:
    """Run the whole road: data, training, evaluation, export, checks, a registered version.

    \b
    vitcifar train --preset digits
    vitcifar train --train-layers all --learning-rate 1e-5 --epochs 5
    vitcifar train --preset digits --seeds 5
    """
    from vitcifar import pipeline, tracking
    from vitcifar.training.distributed import is_worker

    config = pipeline.plan(preset, given(options))
    if seeds == 1 and is_worker():
        return pipeline.follow(config)
    tracking.connect(tracking_uri)
    trained = train_seeds(config, seeds) if seeds > 1 else pipeline.train(config)
    print_score(trained.evaluation)
    click.echo(f"run            {trained.run_id}")
    click.echo(f"weights        sha256 {trained.weights_sha256}")
    held_by = f", holds {trained.alias}" if trained.alias else ""
    click.echo(f"version        {trained.model_name} {trained.version}{held_by}")
    if trained.rejected_because:
        click.echo(trained.rejected_because)
    app, compare = f"app --version {trained.alias or trained.version}", f"compare {trained.version} {config.promote_to}"
    click.echo(f"next           vitcifar {compare if trained.rejected_because else app}", err=True)


def train_seeds(config: TrainConfig, num_seeds: int) -> Any:
    """Train several seeds and print what they make of it; returns the one that is released."""
    from vitcifar.experiments import seeds

    done = seeds.train_seeds(config, num_seeds)
    for child in done.children:
        accuracies = f"validation {child.metrics['validation/accuracy']:.4f}  test {child.metrics['test/accuracy']:.4f}"
        click.echo(f"seed {child.seed:<9} {accuracies}  run {child.run_id}")
    found = done.spreads["test/accuracy"]
    interval = f"95 % interval over the seeds {found.low:.4f} to {found.high:.4f}, Student's t"
    click.echo(f"mean           {found.mean:.4f}  ({interval})")
    click.echo(f"parent run     {done.run_id}")
    click.echo(f"released       seed {done.best.seed}, the best on validation")
    return done.released


@main.command()
@preset_option
@settings(*SWEEP_SETTINGS)
@click.option(
    "--search",
    multiple=True,
    default=["usual"],
    help="A setting with what it may be: NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=ONE,OTHER. Type it again for "
    "another one, or a semicolon between them (usual = learning_rate, optimizer, weight_decay, label_smoothing).",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=20,
    help="Finished trials when it ends, those of earlier and other processes among them.",
)
@click.option("--name", default="sweep", help="Name of the study; one that exists goes on.")
@click.option(
    "--storage", type=click.Path(dir_okay=False), default="sweeps.db", help="SQLite file that keeps the studies."
)
@click.option(
    "--pruner",
    type=click.Choice(["median", "hyperband", "none"]),
    default="median",
    help="What stops a trial that does badly on validation before its last epoch.",
)
@tracking_uri
def sweep(
    preset: str,
    search: tuple[str, ...],
    trials: int,
    name: str,
    storage: str,
    pruner: str,
    tracking_uri: str,
    **options: Any,
) -> None:
    """Search settings with Optuna, on validation alone; type the same again to go on, or beside it to share the work.

    \b
    vitcifar sweep --preset digits --trials 20
    vitcifar sweep --search "learning_rate=1e-4..1e-2:log" --search "train_layers=head,2,all" --epochs 5
    """
    from vitcifar import tracking
    from vitcifar.experiments.search_space import parse_space
    from vitcifar.experiments.storage import Plan
    from vitcifar.experiments.sweep import sweep as run_sweep

    typed = given(options)
    plan = Plan(
        config=resolve(preset, **typed),
        preset=preset,
        space=parse_space(search, typed),
        num_trials=trials,
        name=name,
        storage=Path(storage),
        pruner=pruner,
    )
    tracking.connect(tracking_uri)
    tally = run_sweep(plan)
    best = tally.best
    assert best is not None  # a sweep without one has raised
    click.echo(f"trials         {tally.num_complete} complete, {tally.num_pruned} pruned, {tally.num_killed} killed")
    click.echo(f"parent run     {tally.run_id}")
    click.echo(f"best           trial {best.number}, validation accuracy {best.accuracy:.4f}, run {best.run_id}")
    for setting, value in best.settings.items():
        click.echo(f"  {setting:<17} {value}")
    click.echo(best.command)


@main.command()
@preset_option
@settings(*DATA_SETTINGS)
@click.option("--sheet", type=click.Path(dir_okay=False), default="preview.png", help="Where the preview sheet goes.")
def data(preset: str, sheet: str, **options: Any) -> None:
    """Prepare the images; print counts and fingerprint, draw a preview sheet.

    \b
    vitcifar data --data folder --data-dir images --sheet preview.png
    """
    from vitcifar import pipeline
    from vitcifar.data.contact_sheet import contact_sheet

    splits = pipeline.read_splits(resolve(preset, **given(options)))
    for split, dataset in splits.datasets.items():
        click.echo(f"{split:<12} {len(dataset)} images, {len(dataset) // len(splits.class_names)} per class")
    click.echo(f"classes      {', '.join(splits.class_names)}")
    click.echo(f"fingerprint  {splits.fingerprint}")
    contact_sheet(splits.train).save(sheet)
    click.echo(f"preview      {sheet}")


@main.command()
@version_option
@settings(*DATA_SETTINGS, *ANALYSIS_SETTINGS, default="default: as the version was trained")
@click.option("--experiment", default="vitcifar", help="MLflow experiment of the evaluation's own run.")
@model_name
@tracking_uri
def evaluate(version: str, experiment: str, model_name: str, tracking_uri: str, **options: Any) -> None:
    """Score a registered version on test images, as a run of its own that is linked to the version.

    \b
    vitcifar evaluate --version champion --analysis full --ood digits
    vitcifar evaluate --version 3 --data folder --data-dir images --test-per-class 0
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.experiments.evaluate import evaluate_version

    run_id, score = evaluate_version(registry, version, experiment=experiment, **given(options))
    print_score(score)
    click.echo(f"run            {run_id}")


@main.command()
@version_argument
@click.argument("other")
@settings(*DATA_SETTINGS, default="default: as VERSION was trained")
@click.option(
    "--margin",
    default=0.0,
    type=click.FloatRange(0, 1),
    help="Loss of accuracy that still counts as not worse, 0.01 = one point (0 = none).",
)
@click.option(
    "--detectable",
    default=0.01,
    type=click.FloatRange(0, 1, min_open=True),
    help="Smallest difference that matters, for how many images it would take, 0.01 = one point.",
)
@click.option("--experiment", default="vitcifar", help="MLflow experiment of the comparison's own run.")
@model_name
@tracking_uri
def compare(
    version: str,
    other: str,
    margin: float,
    detectable: float,
    experiment: str,
    model_name: str,
    tracking_uri: str,
    **options: Any,
) -> None:
    """Say whether VERSION is better than the OTHER on the same test images, worse, or inconclusive.

    \b
    vitcifar compare 3 champion
    vitcifar compare latest champion --margin 0.01
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.experiments.evaluate import compare_versions

    run_id, comparison = compare_versions(
        registry, version, other, experiment=experiment, margin=margin, detectable=detectable, **given(options)
    )
    click.echo(comparison.summary())
    if margin:
        click.echo(
            f"not worse      {'yes' if comparison.not_worse else 'not shown'} (by more than {100 * margin:g} points)"
        )
    click.echo(f"run            {run_id}")


@main.command()
@model_name
@tracking_uri
def versions(model_name: str, tracking_uri: str) -> None:
    """List the versions: number, aliases, test accuracy, when, run.

    \b
    vitcifar versions
    """
    rows = registry_of(tracking_uri, model_name).list()
    if not rows:
        raise click.ClickException(
            f"The registry has no version of {model_name!r} yet: type vitcifar train, or see where {tracking_uri} is."
        )
    click.echo(f"{'version':>7}  {'aliases':<22}  {'accuracy':>8}  {'created':<20}  run")
    for row in rows:
        accuracy = "-" if row.test_accuracy is None else f"{row.test_accuracy:.4f}"
        click.echo(
            f"{row.number:>7}  {', '.join(row.aliases) or '-':<22}  {accuracy:>8}  {row.created:<20}  {row.run_id}"
        )


@main.command()
@version_argument
@format_option
@model_name
@tracking_uri
def show(version: str, form: str, model_name: str, tracking_uri: str) -> None:
    """Show one VERSION as a model card, made of what was recorded and proven; or whole, as JSON.

    \b
    vitcifar show champion
    vitcifar show 3 --format json
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.registry.card import model_card

    row = registry.show(version)
    release = registry.pull(row.number)
    if form == "json":
        whole = {"version": dataclasses.asdict(row), "release": dataclasses.asdict(release)}
        click.echo(json.dumps(whole, indent=2, default=str))
    else:
        click.echo(model_card(row, release))


@main.command()
@click.argument("before")
@click.argument("after")
@model_name
@tracking_uri
def diff(before: str, after: str, model_name: str, tracking_uri: str) -> None:
    """Tell in what version AFTER differs from version BEFORE: config, data, metrics, checks, code, files.

    \b
    vitcifar diff 1 champion
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.registry.diff import diff

    print_differences(diff(registry, before, after))


@main.command()
@version_argument
@alias_option
@click.option(
    "--require",
    type=click.Choice(["better", "not-worse", "not-clearly-worse", "none"]),
    default="not-worse",
    help="What the paired test against the alias's present version must show, on the same test images.",
)
@click.option("--margin", default=0.02, help="Loss of accuracy that still counts as not worse.")
@click.option("--min-accuracy", default=0.0, help="Accuracy on the test images that it must reach.")
@click.option("--max-ece", default=0.15, help="Expected calibration error that it may have.")
@click.option("--max-p95-ms", default=0.0, help="Milliseconds that 95 % of answers may take here (0 = no limit).")
@click.option("--golden-dir", default="none", help="Folder of CLASS/* images that it must get right (none = none).")
@click.option("--force", type=click.Choice(["no", "yes"]), default="no", help="Pass failed gates; needs --reason.")
@reason_option
@model_name
@tracking_uri
def promote(
    version: str,
    alias: str,
    golden_dir: str,
    force: str,
    reason: str,
    model_name: str,
    tracking_uri: str,
    **limits: Any,
) -> None:
    """Let an alias mean VERSION if it passes every gate; each is recorded with its number, limit and verdict.

    \b
    vitcifar promote 2 --reason "better on night images"
    vitcifar promote 3 --require better --max-p95-ms 200 --golden-dir golden
    vitcifar promote 4 --force yes --reason "the champion fails on every truck"
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.registry import gates

    policy = gates.Policy(golden_dir=Path(golden_dir) if words(golden_dir) else None, **limits)
    try:
        done = gates.promote(registry, version, alias, policy=policy, force=force == "yes", reason=words(reason))
    except GateError as error:
        print_gates(error.gates)
        raise click.ClickException(error.summary) from error
    print_gates(done.gates)
    print_event(done.event)


@main.command()
@alias_option
@click.option("--to", default="former", help="The version that gets it back (former = who held it before).")
@click.option("--reason", required=True, help="Why, for the history.")
@model_name
@tracking_uri
def rollback(alias: str, to: str, reason: str, model_name: str, tracking_uri: str) -> None:
    """Give an alias back to the version that held it before, for a reason that the history keeps.

    \b
    vitcifar rollback --reason "wrong on every truck since Monday"
    """
    registry = registry_of(tracking_uri, model_name)
    print_event(registry.rollback(alias, to=None if to == "former" else to, reason=words(reason)))


@main.command()
@click.option("--alias", default="all", help="An alias, or all.")
@model_name
@tracking_uri
def history(alias: str, model_name: str, tracking_uri: str) -> None:
    """Who moved which alias, when, from which version to which, through which gates, and why.

    \b
    vitcifar history --alias champion
    """
    everything = registry_of(tracking_uri, model_name).history()
    events = [event for event in everything if alias in ("all", event.alias)]
    if not events:
        known = ", ".join(sorted({event.alias for event in everything})) or "none"
        raise click.ClickException(f"No move of {alias!r} is recorded; aliases with a history: {known}.")
    click.echo(f"{'when':<20}  {'who':<10}  {'what':<8}  {'alias':<12}  {'from':>4}  {'to':>4}  {'gates':<10}  reason")
    for event in events:
        asked = [gate["passed"] for gate in event.gates if gate.get("required", True)]
        gates = f"{sum(asked)}/{len(asked)}{' forced' if event.forced else ''}" if asked else "-"
        what = event.kind if event.done else f"{event.kind} (broken off)"
        click.echo(
            f"{event.when[:19] + 'Z':<20}  {event.who:<10}  {what:<8}  {event.alias:<12}  "
            f"{event.before or '-':>4}  {event.after or '-':>4}  {gates:<10}  {event.reason or '-'}"
        )


@main.command()
@click.option("--keep", default=5, type=click.IntRange(1), help="Newest versions that stay.")
@click.option("--delete", type=click.Choice(["no", "yes"]), default="no", help="Delete them, after a look at the list.")
@model_name
@tracking_uri
def prune(keep: int, delete: str, model_name: str, tracking_uri: str) -> None:
    """List the old versions that would go, never one with an alias or of a rollback; delete them when told to.

    \b
    vitcifar prune --keep 5
    vitcifar prune --keep 5 --delete yes
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.registry.registry import prune

    gone = prune(registry, keep=keep, dry_run=delete == "no")
    for row in gone:
        click.echo(f"{'deleted' if delete == 'yes' else 'would go'}  {row.model_name} {row.number}, {row.created}")
    if not gone:
        click.echo("Nothing to delete: every version is among the newest, has an alias, or is what a rollback goes to.")
    elif delete == "no":
        click.echo("Nothing was deleted yet: add --delete yes.", err=True)
    else:
        click.echo("Their files are still in the store: mlflow gc frees the room.", err=True)


@main.command()
@version_argument
@model_name
@tracking_uri
def reproduce(version: str, model_name: str, tracking_uri: str) -> None:
    """Train VERSION again from its recorded config, seed and images, and print what came out different.

    \b
    vitcifar reproduce 3
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.experiments.reproduce import reproduce

    done = reproduce(registry, version)
    print_differences(done.differences)
    if not done.same_weights:
        raise click.ClickException(f"{model_name} {done.version} came out with other weights; see above what differs.")
    click.echo(f"{model_name} {done.version} was made again: the same weights, bit for bit.")


@main.command()
@click.option("--repair", type=click.Choice(["no", "yes"]), default="no", help="Repair what is found.")
@click.option(
    "--settled-seconds", default=3600.0, help="Age from which what is unfinished counts as left behind, in seconds."
)
@model_name
@tracking_uri
def doctor(repair: str, settled_seconds: float, model_name: str, tracking_uri: str) -> None:
    """Find half-registered versions, missing or changed files and aliases that point at less than a whole release.

    \b
    vitcifar doctor
    vitcifar doctor --repair yes
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.registry import doctor

    act = doctor.repair if repair == "yes" else doctor.diagnose
    before = len(registry.history()) if registry.list() else 0
    findings = act(registry, settled_seconds=settled_seconds)
    for finding in findings:
        state = "done" if finding.fixed else "left alone" if finding.waiting else "to do"
        click.echo(f"{finding.kind:<14}  {finding.subject}: {finding.message}. {state}: {finding.fix}")
    for event in registry.history()[before:] if registry.list() else ():
        print_event(event)
    left = [finding for finding in findings if not finding.fixed and not finding.waiting]
    if left:
        can = repair == "no" and any(finding.action for finding in left)
        advice = "type vitcifar doctor --repair yes" if can else "it takes a person, the lines above say what"
        things = "1 thing is" if len(left) == 1 else f"{len(left)} things are"
        raise click.ClickException(f"{things} not as it should be: {advice}.")
    if not findings and not registry.list():
        registry.resolve("latest")  # raises, naming the models that there are
    click.echo("Every alias points at a whole release.")


@main.command()
@version_option
@click.option(
    "--threads", type=Threads(), default="all", help="Numbers of threads, such as 1,2 (all = 1 and every core)."
)
@click.option("--runs", default=30, type=click.IntRange(2), help="Answers timed for each row.")
@model_name
@tracking_uri
def benchmark(version: str, threads: tuple[int, ...], runs: int, model_name: str, tracking_uri: str) -> None:
    """Measure a version on this machine: form x threads, size, cold start, p50, p95 and p99; kept on the version.

    \b
    vitcifar benchmark --version champion --threads 1,2
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.experiments.evaluate import test_images
    from vitcifar.registry.benchmark import benchmark

    release, dataset = registry.pull(version), None
    try:
        dataset = test_images(release)
    except DataError as error:
        click.echo(f"Note: {error} The accuracies are those of the version's checks.", err=True)
    done = benchmark(registry, release.version, dataset=dataset, threads=threads, num_runs=runs)
    table = done.table
    machine = table.machine
    click.echo(f"{machine.processor}, {machine.num_cores} cores, {' '.join(machine.flags)}")
    click.echo(f"{', '.join(f'{name} {number}' for name, number in machine.versions.items())}  [{machine.fingerprint}]")
    click.echo("form    threads   size MB  accuracy   cold ms    p50 ms    p95 ms    p99 ms")
    for row in table.rows:
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.4f}"
        size = f"{row.file_bytes / 1e6:.1f}" if row.file_bytes else "-"
        click.echo(
            f"{row.format:<6}  {row.num_threads:>7}  {size:>8}  {accuracy:>8}  {row.cold_ms:>8.1f}  "
            f"{row.p50_ms:>8.2f}  {row.p95_ms:>8.2f}  {row.p99_ms:>8.2f}"
        )
    for change in done.changes:
        times = f"{change.before_ms:.2f} ms before, {change.now_ms:.2f} ms now"
        threads_word = "thread" if change.num_threads == 1 else "threads"
        click.echo(f"{change.format} with {change.num_threads} {threads_word}: {times}, ratio {change.ratio:.2f}")


@main.command()
@version_option
@click.option("--host", default="127.0.0.1", help="Address to listen on (0.0.0.0 = every one).")
@click.option("--port", default=7860, type=click.IntRange(0, 65535), help="Port to listen on (0 = any free one).")
@click.option("--allowed-hosts", default="none", help="More names that the page is reached by: a.example,b.example.")
@model_name
@tracking_uri
def app(version: str, host: str, port: int, allowed_hosts: str, model_name: str, tracking_uri: str) -> None:
    """Serve a version as a page: images in, probabilities, timing and the version that answered out.

    \b
    vitcifar app --version champion --port 7860
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.serving.app import launch

    page = launch(registry, version, host=host, port=port, allowed_hosts=names_of(allowed_hosts))
    click.echo(f"{page.url}  (Ctrl-C ends it)")
    page.wait()


@main.command()
@click.argument("files", nargs=-1, required=True)
@version_option
@format_option
@model_name
@tracking_uri
def predict(files: tuple[str, ...], version: str, form: str, model_name: str, tracking_uri: str) -> None:
    """Answer image FILES with a registered version, without torch.

    \b
    vitcifar predict cat.jpg dog.png
    vitcifar predict --version 3 --format json photos/*.jpg
    """
    registry = registry_of(tracking_uri, model_name)
    from vitcifar.serving.batch import Table, predict_files
    from vitcifar.serving.loaded_model import open_version

    opened = open_version(registry, version)
    table, num_failed = Table(opened, files), 0
    if form == "text":
        click.echo(table.heading())
    for prediction in predict_files(opened, files):
        num_failed += prediction.answer is None
        if form == "json":
            click.echo(prediction.to_json())
        else:
            click.echo(table.line(prediction), err=prediction.answer is None)
    if num_failed:
        raise click.ClickException(f"{num_failed} of {len(files)} files could not be answered.")


@main.command("compare-logs")
@click.argument("run")
@tracking_uri
def compare_logs(run: str, tracking_uri: str) -> None:
    """Prove value by value that TensorBoard and MLflow say the same of RUN (an MLflow run id).

    \b
    vitcifar compare-logs 0f3c9d2b8a6e4c0f9d1e2b3a4c5d6e7f
    """
    from vitcifar import tracking

    tracking.connect(tracking_uri)
    agreement = tracking.compare_logs(run)
    for difference in agreement.differences:
        click.echo(difference)
    verdict = f"{agreement.num_points} values of {agreement.num_metrics} metrics"
    if agreement.differences:
        raise click.ClickException(f"{len(agreement.differences)} differences in {verdict}.")
    click.echo(f"MLflow and TensorBoard agree on {verdict}.")


if __name__ == "__main__":
    main()
