"""Options generated from the fields of TrainConfig and Policy, the options that several commands share, and how the
command line is parsed: underscores as MLflow writes them, and option names of vitcifar 0.1.
"""

import contextlib
import dataclasses
import functools
import gc
import glob
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vitcifar.config import RENAMED_SETTINGS, TrainConfig
from vitcifar.errors import ConfigError
from vitcifar.presets import PRESETS
from vitcifar.registry.policy import Policy

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
FROM_PRESET = "preset"  # the value that leaves a setting to the preset: MLproject's default
FROM_POLICY = "policy"  # the value that leaves a limit to the model's policy
MADE_BY_MLFLOW_RUN = {"experiment": "--experiment-name", "run_name": "--run-name"}  # and its own options for them
EXPERIMENT_VARIABLE = {"envvar": "MLFLOW_EXPERIMENT_NAME", "show_envvar": True}  # which `mlflow run` reads too
RENAMED_OPTIONS = {  # hidden aliases until 0.3
    f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}"
    for old, new in {**RENAMED_SETTINGS, "settled_seconds": "stale_seconds"}.items()
}


class Command(click.Command):
    """A command whose options may be written with underscores, as MLflow writes them, or under an old name.

    For an option that it does not have, it suggests those of the same initials (lr: learning-rate).
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, [at_home(self.current_name(word)) for word in args])
        except click.NoSuchOption as error:
            names = [name for param in self.params for name in param.opts if initials(name) == error.option_name]
            if not names:
                raise
            message = f"No such option {error.option_name!r}. Did you mean {' or '.join(map(repr, names))}?"
            raise click.NoSuchOption(error.option_name, message, ctx=ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        for name, theirs in MADE_BY_MLFLOW_RUN.items():
            value, typed = ctx.params.get(name), ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
            if "MLFLOW_RUN_ID" in os.environ and typed and value is not None:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"`mlflow run` has made the run already, which {option} cannot change: "
                    f"type mlflow run {theirs} {shlex.quote(str(value))} instead."
                )
        return super().invoke(ctx)

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
            group = param.field.metadata["group"] if isinstance(param, SettingOption) else "Options"
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                name, help = record
                rows.setdefault(group, []).append((name.replace(" RANGE", ""), help))  # the help ends with the range
        for group, records in sorted(rows.items(), key=lambda row: row[0] == "Options"):
            with formatter.section(group):
                formatter.write_dl(records)


def initials(name: str) -> str:
    return "--" + "".join(word[0] for word in name.strip("-").split("-"))


def at_home(word: str) -> str:
    """A path in the home folder, as the shell would expand it: it does not behind a = sign, nor for MLflow."""
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return name + equals + os.path.expanduser(value) if value.startswith("~/") else word


def command(function: Callable[..., Any]) -> Command:
    return click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})(function)


def option(
    name: str,
    default: Any,
    help: str,
    *,
    choices: Any = (),
    minimum: Any = None,
    maximum: Any = None,
    **attributes: Any,
) -> Decorator:
    """An option with the type of its default, and with choices or bounds as `config.setting` takes them."""
    kind: Any = click.STRING
    if choices:
        kind = click.Choice(choices)
    elif not isinstance(default, str):
        kind = (click.IntRange if isinstance(default, int) else click.FloatRange)(minimum, maximum)
    return click.option(name, **{"type": kind, "default": default, "help": help, **attributes})


def field_option(field: dataclasses.Field[Any], /, **attributes: Any) -> Decorator:
    """An option generated from a dataclass field: its type, choices, bounds, default and help."""
    metadata = {name: field.metadata[name] for name in ("help", "choices", "minimum", "maximum")}
    return option(f"--{field.name.replace('_', '-')}", field.default, **metadata, **attributes)


class SettingOption(click.Option):
    """An option for a setting of TrainConfig; without a value, or with `preset`, the preset decides."""

    def __init__(self, names: Sequence[str], *, field: dataclasses.Field[Any], text: str, **attributes: Any) -> None:
        self.field = field
        others = [f"{name}: {values[field.name]}" for name, values in PRESETS.items() if field.name in values]
        self.default_text = text or "; ".join([str(field.default), *others])
        super().__init__(names, **{**attributes, "default": FROM_PRESET})

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        if value in self.field.metadata["refused"]:
            return value  # TrainConfig says why
        return None if value == FROM_PRESET else super().type_cast_value(ctx, value)

    def get_help_extra(self, ctx: click.Context) -> Any:
        return {**super().get_help_extra(ctx), "default": self.default_text}


class LimitOption(click.Option):
    """An option for a field of Policy; without a value, or with `policy`, the model's policy decides."""

    def __init__(self, names: Sequence[str], **attributes: Any) -> None:
        super().__init__(names, **{**attributes, "default": FROM_POLICY})

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        return None if value == FROM_POLICY else super().type_cast_value(ctx, value)


def settings(*names: str, default: str = "") -> Decorator:
    """Options for the named settings, or for all, and for their preset, unless `default` says what decides instead."""
    preset = option("--preset", "cifar10", "Base settings; every other option overrides them.", choices=list(PRESETS))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(TrainConfig)):
            if not names or field.name in names:
                variable = EXPERIMENT_VARIABLE if field.name == "experiment" else {}
                function = field_option(field, cls=SettingOption, field=field, text=default, **variable)(function)
        return function if default else preset(function)

    return decorate


def policy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options for the limits of the gates; without a value, or with `policy`, that of the model's policy."""
    for field in reversed(dataclasses.fields(Policy)):
        function = field_option(field, cls=LimitOption)(function)
    return function


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given a value."""
    return {name: value for name, value in options.items() if value is not None}


def host_names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return () if value == "none" else tuple(name.strip() for name in value.split(","))


def several_files(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[str]:
    """The files of an argument. `mlflow run` passes one text, which is split and expanded as the shell does it."""
    files: list[str] = []
    for text in value:
        split = "MLFLOW_RUN_ID" in os.environ and not os.path.exists(text)
        try:
            words = shlex.split(text) if split else []
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not quoted as in a shell ({error}).") from error
        for word in words:
            files += sorted(glob.glob(os.path.expanduser(word))) or [word]
        files += [] if split else [text]
    return files


def thread_counts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    counts = [] if value == "all" else value.split(",")
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise click.BadParameter(f"{value!r} is not all, or numbers such as 1,2.", ctx, param)
    return tuple(int(count) for count in counts)


def yes_or_no(name: str, help: str) -> Decorator:
    """An option that is off by default; it takes a value, since MLflow cannot pass a bare flag."""
    return option(name, "no", help, choices=("no", "yes"), callback=lambda ctx, param, value: value == "yes")


def open_registry(model_name: str, tracking_uri: str) -> "Registry":
    from vitcifar import tracking
    from vitcifar.registry.registry import Registry

    tracking.connect(tracking_uri, new=False)
    return Registry(model_name)


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Python's garbage collector pauses for imports, and later leaves alone what exists by then.

    Imports make a million objects and no garbage; looking for some takes a tenth of their time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def registry_command(function: Callable[..., Any]) -> Any:
    """A command whose last options name a model in a registry; the function gets the open `registry`."""

    @functools.wraps(function)
    def with_registry(*, model_name: str, tracking_uri: str, **options: Any) -> Any:
        with without_gc():
            registry = open_registry(model_name, tracking_uri)
        return function(registry=registry, **options)

    return tracking_uri_option(model_name_option(command(with_registry)))


model_name_option = option("--model-name", "vitcifar", "Name of the model in the registry.")
tracking_uri_option = option(
    "--tracking-uri",
    "sqlite:///mlflow.db",
    "MLflow tracking store and registry: sqlite:///FILE or http://HOST:PORT.",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
)
experiment_option = option(
    "--experiment", TrainConfig.experiment, "MLflow experiment of the run.", **EXPERIMENT_VARIABLE
)
require_signature_option = option(
    "--require-signature",
    "none",
    "File of the public keys, or their text, of which one must have signed the version (none = those of "
    "VITCIFAR_REQUIRE_SIGNATURE, if it is set).",
)
version_option = option("--version", "champion", "Version number, alias, or latest.")
format_option = click.option(
    "--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output format."
)
alias_option = option("--alias", "champion", "Alias to move, e.g. champion or challenger.")
reason_option = option(
    "--reason",
    "none",
    "Reason, recorded in the history (none = no reason).",
    callback=lambda ctx, param, value: "" if value == "none" else value,
)
