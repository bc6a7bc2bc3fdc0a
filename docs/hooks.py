"""Generates the reference pages from the code: commands, settings, presets and error messages."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vitcifar import cli, errors
from vitcifar.config import TrainConfig
from vitcifar.presets import PRESETS
from vitcifar.stores import CAUSES

PACKAGE = Path(errors.__file__).parent


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each marker by its generated Markdown."""
    for marker, generate in {
        "<!-- commands -->": commands,
        "<!-- settings -->": settings,
        "<!-- errors -->": error_messages,
    }.items():
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(generate()))
    return markdown


def commands() -> Iterator[str]:
    """The help text of the program and of every command, as the terminal shows it."""
    top = click.Context(cli.main, info_name="vitcifar", terminal_width=84, max_content_width=84)
    yield from ("```text", cli.main.get_help(top), "```")
    for name in cli.main.list_commands(top):
        command = cli.main.commands[name]
        context = click.Context(command, parent=top, info_name=name, terminal_width=84, max_content_width=84)
        yield from ("", f"## {name}", "", "```text", command.get_help(context), "```")


def settings() -> Iterator[str]:
    """One table per group of settings: option, default (and presets that differ), description."""
    group = ""
    for field in dataclasses.fields(TrainConfig):
        meta = field.metadata
        if meta["group"] != group:
            group = meta["group"]
            yield from ("", f"## {group}", "", "| setting | default | description |", "|---|---|---|")
        presets = "".join(
            f"<br>`{name}`: `{values[field.name]}`" for name, values in PRESETS.items() if field.name in values
        )
        choices = f" One of {', '.join(f'`{choice}`' for choice in meta['choices'])}." if meta["choices"] else ""
        help_text = meta["help"].replace("|", "\\|")
        yield f"| `{field.name}` | `{field.default}`{presets} | {help_text}{choices} |"


def error_messages() -> Iterator[str]:
    """Every error class with its meaning, and every message of the code that raises it."""
    raised = dict(sorted(messages().items()))
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        found = raised.get(name, [])
        if not issubclass(kind, errors.VitCifarError) or not found:
            continue
        yield from ("", f"## {name}", "", inspect.getdoc(kind) or "", "", "| what happened | what to do |", "|---|---|")
        for message in sorted(set(found)):
            happened, _, cure = message.partition(": ")
            yield f"| {happened} | {cure or '-'} |"


def messages() -> dict[str, list[str]]:
    """Error class -> its messages, with {placeholders} for what is filled in."""
    causes = [f"The tracking store `uri` cannot be used ({cause}): {cure}" for _, cause, cure in CAUSES]
    found: dict[str, list[str]] = {"TrackingError": causes}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                text = text_of(node.args[0])
                if node.func.id.endswith("Error") and " " in text:
                    found.setdefault(node.func.id, []).append(text.replace("|", "\\|").replace("<", "&lt;"))
    return found


def text_of(node: ast.expr) -> str:
    """The text of a string or f-string; an expression inside becomes a placeholder."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    parts = []
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts.append(str(value.value))
        else:
            assert isinstance(value, ast.FormattedValue)
            name = ast.unparse(value.value)
            parts.append(f"`{name}`" if name.replace("_", "").replace(".", "").isalnum() else "…")
    return "".join(parts)
