"""The command line: `vitcifar`, `python -m mlproject` and, through MLproject, `mlflow run .` are this one program.

It reads options, prints results, and turns an error that the user can fix into one line. Nothing heavy is imported
before a command needs it.
"""

import contextlib
import errno
import io
import os
import sys
import warnings
from typing import Any

import click

from vitcifar import __version__, signals
from vitcifar.cli import feedback, registry, runs, serving
from vitcifar.cli.container import container
from vitcifar.cli.data import data
from vitcifar.cli.monitor import monitor
from vitcifar.cli.optimize import optimize
from vitcifar.cli.signing import sign
from vitcifar.errors import VitCifarError

COMMANDS = {  # as `vitcifar -h` lists them
    "Train": (runs.train, runs.sweep, optimize, runs.sync, data),
    "Evaluate": (runs.evaluate, runs.compare, runs.compare_logs),
    "Registry": (
        registry.versions,
        registry.show,
        registry.diff,
        registry.promote,
        registry.policy,
        registry.approve,
        sign,
        registry.rollback,
        registry.history,
    ),
    "Serve": (serving.app, serving.predict, serving.score, feedback.feedback, feedback.suggest, monitor, container),
    "Maintenance": (registry.doctor, registry.prune, serving.cache, registry.benchmark, runs.reproduce),
}

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Program(click.Group):
    """The commands under their headings; an error that the user can fix ends as one line with exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(command.name or "", command.get_short_help_str(200)) for command in commands])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VitCifarError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            if not serves_only():
                raise
            raise click.ClickException(
                f"This installation of vitcifar serves only, without {error.name}: install vitcifar from its sources, "
                "with all requirements, for this command."
            ) from error
        except OSError as error:
            if error.errno not in FULL:
                raise
            place = error.filename2 or error.filename or "A file, such as TensorBoard's in --output-dir,"
            raise click.ClickException(
                f"{place} cannot be written ({error.strerror}): free disk space, then type the command again; a run "
                "that was stopped goes on with --resume last."
            ) from error
        except signals.Stopped as stopped:
            with contextlib.suppress(OSError):  # the terminal may be gone
                click.echo(f"Stopped by {stopped}.", err=True)
                sys.stdout.flush()
            os._exit(stopped.exit_code)  # at once: every run is closed, and a second signal would end what is left


def serves_only() -> bool:
    """Whether this is an installation of `vitcifar container`, or of MLflow for a version."""
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a checkout, by `mlflow run`
        return "+serve" in importlib.metadata.version("vitcifar")
    return False


@click.group(
    cls=Program,
    commands=[command for commands in COMMANDS.values() for command in commands],
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110},
)
@click.version_option(__version__, prog_name="vitcifar")
def main() -> None:
    """Fine-tune, verify, register and serve vision transformers, tracked by MLflow.

    \b
    vitcifar train --preset digits     full pipeline in about a minute, no downloads
    vitcifar app --version champion    demo page of the promoted version
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before anything imports mlflow
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    # Waiting OpenMP threads spin, which starves torch when other programs need the cores. A step of vit_tiny
    # (torch 2.13, 2 cores) beside two of them takes over 1000 ms unbounded, 40 ms bounded; alone 15 ms either way.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    signals.install()
    for stream in (sys.stdout, sys.stderr):  # a terminal's encoding may lack a character of ours or of a class name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"Note: {message}\n"
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        from vitcifar.tracking import hide_secrets

        hide_secrets(run_id)
