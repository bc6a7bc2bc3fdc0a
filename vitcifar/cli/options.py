"""Options generated from the fields of TrainConfig and Policy, the options that several commands share, and how the
command line is parsed: underscores as MLflow writes them, and option names of vitcifar 0.1.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from vitcifar.config import PRESETS, RENAMED_SETTINGS, TrainConfig
from vitcifar.registry.policy import Policy

if TYPE_CHECKING:
    from click.types import OptionHelpExtra

    from vitcifar.registry.registry import Registry

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
FROM_PRESET = "preset"  # the value that leaves a setting to the preset: MLproject's default
RENAMED_OPTIONS = {  # hidden aliases until 0.3
    f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}"
    for old, new in {**RENAMED_SETTINGS, "settled_seconds": "stale_seconds"}.items()
}


class Command(click.Command):
    """A command whose options may be written with underscores, as MLflow writes them, or under an old name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [self.current_name(word) for word in args])

    def current_name(self, word: str) -> str:
        """An option as this command declares it; other words are left unchanged."""
        if not word.startswith("--"):
            return word
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        renamed = RENAMED_OPTIONS.get(name, "")
        if any(renamed in param.opts for param in self.params):
            click.echo(f"Note: {name} is now called {renamed}.", err=True)
            name = renamed
        return name + equals + value

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            group = param.field.metadata["group"] if isinstance(param, FieldOption) else "Options"
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                name, help = record
                rows.setdefault(group, []).append((name.replace(" RANGE", ""), help))  # the help ends with the range
        for group, records in sorted(rows.items(), key=lambda row: row[0] == "Options"):
            with formatter.section(group):
                formatter.write_dl(records)


def command(name: str | None = None) -> Callable[[Callable[..., Any]], Command]:
    return click.command(name, cls=Command)


class FieldOption(click.Option):
    """An option generated from a dataclass field: its type, choices, bounds, default and help."""

    def __init__(self, names: Sequence[str], *, field: dataclasses.Field[Any], **attributes: Any) -> None:
        self.field = field
        attributes.setdefault("default", field.default)
        super().__init__(names, type=type_of(field), help=field.metadata["help"], **attributes)


class SettingOption(FieldOption):
    """An option for a setting of TrainConfig; without a value, or with `preset`, the preset decides."""

    def __init__(self, names: Sequence[str], *, default_text: str, **attributes: Any) -> None:
        self.default_text = default_text
        super().__init__(names, default=None, **attributes)

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        return None if value == FROM_PRESET else super().type_cast_value(ctx, value)

    def get_help_extra(self, ctx: click.Context) -> "OptionHelpExtra":
        return {"default": self.default_text, **super().get_help_extra(ctx)}


def option_name(field: dataclasses.Field[Any]) -> str:
    return f"--{field.name.replace('_', '-')}"


def type_of(field: dataclasses.Field[Any]) -> click.ParamType:  # type: ignore[type-arg]  # generic since click 8.4
    """The click type that accepts a field's valid values."""
    meta = field.metadata
    if meta["choices"]:
        return click.Choice(meta["choices"])
    if field.type is str:
        return click.STRING
    return (click.IntRange if field.type is int else click.FloatRange)(meta["minimum"], meta["maximum"])


def settings(*names: str, default: str = "") -> Decorator:
    """Options for the named settings, or for all; `default` replaces the defaults in the help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(TrainConfig)):
            if not names or field.name in names:
                text = default or default_text(field)
                function = click.option(option_name(field), cls=SettingOption, field=field, default_text=text)(function)
        return function

    return decorate


def default_text(field: dataclasses.Field[Any]) -> str:
    """A field's default, and the presets that differ from it."""
    others = [f"{name}: {values[field.name]}" for name, values in PRESETS.items() if field.name in values]
    return "; ".join([str(field.default), *others])


def policy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options for the limits of the gates."""
    for field in reversed(dataclasses.fields(Policy)):
        function = click.option(option_name(field), cls=FieldOption, field=field)(function)
    return function


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given a value."""
    return {name: value for name, value in options.items() if value is not None}


def none_as_empty(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """`none` means no text."""
    return "" if value == "none" else value


def host_names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in value.split(",") if name.strip() and value != "none")


def thread_counts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Numbers separated by commas; none for `all`."""
    counts = [] if value == "all" else value.split(",")
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise click.BadParameter(f"{value!r} is not all, or numbers such as 1,2.", ctx, param)
    return tuple(int(count) for count in counts)


def yes_or_no(name: str, help: str) -> Decorator:
    """An option that is off by default; it takes a value, since MLflow cannot pass a bare flag."""
    values = click.Choice(["no", "yes"])
    return click.option(name, type=values, default="no", callback=lambda ctx, param, value: value == "yes", help=help)


def open_registry(model_name: str, tracking_uri: str) -> "Registry":
    from vitcifar import tracking
    from vitcifar.registry.registry import Registry

    tracking.connect(tracking_uri, new=False)
    return Registry(model_name)


def registry_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that name a model in a registry; the command gets the open `registry`."""

    @functools.wraps(function)
    def with_registry(*, model_name: str, tracking_uri: str, **options: Any) -> Any:
        return function(registry=open_registry(model_name, tracking_uri), **options)

    return model_name_option(tracking_uri_option(with_registry))


preset_option = click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="cifar10",
    help="Base settings; every other option overrides them.",
)
tracking_uri_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="sqlite:///mlflow.db",
    show_envvar=True,
    help="MLflow tracking store and registry: sqlite:///FILE or http://HOST:PORT.",
)
model_name_option = click.option("--model-name", default="vitcifar", help="Name of the model in the registry.")
version_option = click.option("--version", default="champion", help="Version number, alias, or latest.")
version_argument = click.argument("version")
format_option = click.option(
    "--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output format."
)
alias_option = click.option("--alias", default="champion", help="Alias to move, e.g. champion or challenger.")


def reason_option(required: bool = False) -> Decorator:
    """The reason recorded in the history of an alias."""
    if required:
        return click.option("--reason", required=True, help="Reason, recorded in the history.")
    help = "Reason, recorded in the history (none = no reason)."
    return click.option("--reason", default="none", callback=none_as_empty, help=help)
