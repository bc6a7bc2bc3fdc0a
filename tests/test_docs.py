"""Every command and option named in messages and documentation exists."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from support.project import ROOT

from vitcifar import cli

COMMANDS = cli.main.commands
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "MLproject",
    *sorted(ROOT.glob("docs/**/*.md")),
]
SOURCES = sorted((ROOT / "vitcifar").rglob("*.py"))

OPTIONS = {name: {option for param in command.params for option in param.opts} for name, command in COMMANDS.items()}
HELP = {"-h", "--help", "--version"}
# Options of other programs: mlflow, tensorboard, git, torchrun, curl, pip, docker.
OTHER_PROGRAMS = {
    *(
        "--env-manager",
        "--experiment-id",
        "--experiment-name",
        "--run-id",
        "--source",
        "--target",
        "--backend-store-uri",
        "--artifacts-destination",
        "--logdir",
        "--porcelain",
        "--nproc-per-node",
        "--data-binary",
        "--nnodes",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--find-links",
        "--build",
    )
}
NO_COMMANDS = ("vitcifar pictures 1", "vitcifar version 3")  # the salt of the fingerprint, the name of a version
# What stands before a command: an unknown word after it is a mistake, elsewhere it is prose about vitcifar.
BEFORE_A_COMMAND = re.compile(r"(^|[`$(:,]\s*|\b(type|run|or) )\Z", flags=re.MULTILINE)


def strings_of(path: Path) -> Iterator[str]:
    """The string literals of a module, an f-string as one with `{}` for its values."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    return visit(ast.parse(path.read_text(encoding="utf-8")))


def without_css(text: str) -> str:
    """A text without custom properties of CSS, which look like options."""
    return re.sub(r"var\(--[\w-]+|--[\w-]+:\s*[^;\"]+[;\"]", "", text)


def named_options(text: str) -> set[str]:
    return {name.replace("_", "-") for name in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*[a-z0-9]", without_css(text))}


def named_commands(text: str) -> Iterator[tuple[str, str]]:
    """Every `vitcifar COMMAND` in a text, with the rest of the line up to the end of the quotation or sentence."""
    text = text.replace("\\\n", " ")
    for name in NO_COMMANDS:
        text = text.replace(name, "")
    for match in re.finditer(r"(?<![\w/.-])vitcifar ([a-z][a-z-]*)([^`\n#|]*)", text):
        if match[1] in COMMANDS or BEFORE_A_COMMAND.search(text[: match.start()]):
            yield match[1], re.split(r"[.,;:)] |\.$|, or ", match[2])[0]


def unknown_names(text: str) -> set[str]:
    everywhere = set().union(*OPTIONS.values(), HELP, OTHER_PROGRAMS, cli.options.RENAMED_OPTIONS)
    wrong = named_options(text) - everywhere
    for name, rest in named_commands(text):
        if name not in COMMANDS:
            wrong.add(f"vitcifar {name}")
        else:
            wrong |= {f"{name} {option}" for option in named_options(rest) - OPTIONS[name] - HELP}
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_and_command_named_in_a_message_exists(path):
    assert {name for text in strings_of(path) for name in unknown_names(text)} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_and_command_named_in_a_document_exists(path):
    assert unknown_names(path.read_text(encoding="utf-8")) == set()


def test_an_unknown_option_or_command_is_found():
    assert unknown_names("type `vitcifar evaluate --seed 1`") == {"evaluate --seed"}
    assert unknown_names("add --no-such-option") == {"--no-such-option"}
    assert unknown_names("run vitcifar trian") == {"vitcifar trian"}
    assert unknown_names("a{color:var(--ink);--ink:#fff;}") == set()


def typed_commands() -> list[list[str]]:
    """The command lines in the code blocks of the documents."""
    blocks = [
        block.replace("\\\n", " ")
        for path in DOCUMENTS
        if path.suffix == ".md"
        for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    ]
    lines = [line for block in blocks for line in re.findall(r"^(?:\$ )?(?:vitcifar) .*$", block, flags=re.MULTILINE)]
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]


@pytest.mark.parametrize("words", typed_commands(), ids=" ".join)
def test_every_command_line_of_the_documents_parses(words):
    command = COMMANDS[words[1]]
    if not {"-h", "--help"} & set(words):
        assert isinstance(command.make_context(words[1], words[2:]), click.Context)


def test_the_guides_type_every_command():
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS if path.suffix == ".md")
    assert [name for name in COMMANDS if f"vitcifar {name}" not in text] == []


def test_every_parameter_that_the_documents_pass_to_mlflow_run_is_an_option():
    for path in DOCUMENTS:
        for line in re.findall(r"mlflow run .*", path.read_text(encoding="utf-8").replace("\\\n", " ")):
            entry = re.search(r"-e ([a-z-]+)", line)
            name = "train" if entry is None or entry[1] == "main" else entry[1]
            for parameter in re.findall(r"-P \"?([a-z_0-9]+)=", line):
                known = {param.name for param in COMMANDS[name].params}
                assert parameter in known, f"{path.name}: {line}"
