"""The front door: `vitcifar`, `python -m mlproject` and, through MLproject, `mlflow run .` are this one program.

It reads options, turns what a user can fix into one line, and prints. It holds no loop and loads nothing heavy
before a command needs it.
"""

import dataclasses
import signal
from collections.abc import Callable
from typing import Any

import click

from vitcifar import __version__
from vitcifar.config import PRESETS, TrainConfig, resolve
from vitcifar.errors import VitCifarError

TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING}
FROM_PRESET = "preset"  # the value that leaves a setting to the preset, as MLproject writes it


class Program(click.Group):
    """A group of commands in the order of the road, that ends in one line for what a user can fix."""

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
        self.inner = click.Choice(choices) if choices else TYPES[field.type]  # type: ignore[index]
        self.name = self.inner.name

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self.inner.get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == FROM_PRESET else self.inner.convert(value, param, ctx)


def settings(*names: str) -> Callable[[Callable], Callable]:
    """Options for the named fields of TrainConfig (all when none is named), and --preset before them."""

    def decorate(command: Callable) -> Callable:
        for field in reversed(dataclasses.fields(TrainConfig)):
            if names and field.name not in names:
                continue
            option = click.option(
                f"--{field.name.replace('_', '-')}",
                type=Setting(field),
                help=f"{field.metadata['help']}  [{default_of(field)}]",
                show_default=False,
            )
            command = option(command)
        return click.option(
            "--preset",
            type=click.Choice(list(PRESETS)),
            default="cifar10",
            help="Settings to start from; every other option overrides it.",
        )(command)

    return decorate


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
version = click.option("--version", "spec", default="champion", help="A version's number, an alias, or latest.")
as_json = click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="What is printed.")


def registry_of(tracking_uri: str, model_name: str) -> Any:
    from vitcifar.release.registry import Registry

    from vitcifar import tracking

    tracking.connect(tracking_uri)
    return Registry(model_name)


@click.group(
    cls=Program,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 110,
        "token_normalize_func": lambda token: token.replace("_", "-"),  # MLflow writes -P a_b=1 as --a_b 1
    },
)
@click.version_option(__version__, prog_name="vitcifar")
def main() -> None:
    """Fine-tune, prove, register and serve vision transformers, tracked by MLflow.

    \b
    vitcifar train --preset digits        the whole road in about a minute, no downloads
    vitcifar app --version champion       the page that serves what was promoted
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does, never leaves it RUNNING


@main.command()
@settings()
@tracking_uri
def train(preset: str, tracking_uri: str, **options: Any) -> None:
    """Run the whole road: data, training, evaluation, export, proofs, a registered version.

    \b
    vitcifar train --preset digits
    vitcifar train --train-layers all --learning-rate 1e-5 --epochs 5
    """
    from vitcifar import pipeline, tracking

    config = pipeline.plan(preset, given(options))
    tracking.connect(tracking_uri)
    trained = pipeline.train(config)
    score = trained.evaluation
    click.echo(
        f"test accuracy  {score.accuracy:.4f}  "
        f"(95 % interval {score.accuracy_low:.4f} to {score.accuracy_high:.4f}, {score.num_pictures} pictures)"
    )
    click.echo(f"run            {trained.run_id}")
    click.echo(f"weights        sha256 {trained.weights_sha256}")
    held_by = f", holds {trained.alias}" if trained.alias else ""
    click.echo(f"version        {trained.model_name} {trained.version}{held_by}")
    wanted = trained.alias or trained.version
    click.echo(f"next           vitcifar app --version {wanted}", err=True)


@main.command()
@settings("data", "data_dir", "train_per_class", "validation_per_class", "test_per_class", "seed")
@click.option("--sheet", type=click.Path(dir_okay=False), default="preview.png", help="Where the preview sheet goes.")
def data(preset: str, sheet: str, **options: Any) -> None:
    """Prepare the pictures; print counts and fingerprint, draw a preview sheet.

    \b
    vitcifar data --data folder --data-dir pictures --sheet preview.png
    """
    from vitcifar.data.preview import preview_sheet

    from vitcifar import pipeline

    splits = pipeline.read_splits(resolve(preset, **given(options)))
    for role, pictures in splits.by_role().items():
        click.echo(f"{role:<12} {len(pictures)} pictures, {len(pictures) // len(splits.class_names)} per class")
    click.echo(f"classes      {', '.join(splits.class_names)}")
    click.echo(f"fingerprint  {splits.fingerprint}")
    preview_sheet(splits.train).save(sheet)
    click.echo(f"preview      {sheet}")


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
