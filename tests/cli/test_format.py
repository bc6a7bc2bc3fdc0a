"""What the commands print."""

import json
import os
import re
import subprocess
import sys

import pytest
from PIL import Image
from support.project import ROOT
from support.toys import make_onnx

from vitcifar import tracking
from vitcifar.cli import format
from vitcifar.errors import ReleaseError
from vitcifar.registry.aliases import new_event
from vitcifar.registry.diff import Difference
from vitcifar.registry.policy import Gate
from vitcifar.registry.registry import Version
from vitcifar.registry.repair import Finding


def version(number: int, **more: object) -> Version:
    fields = {"aliases": (), "status": "READY", "created": "2026-01-31T12:00:00Z", "run_id": "abc", "source": ""}
    return Version(model_name="toy", number=number, **{**fields, "tags": {}, **more})


def test_numbers_are_aligned_to_the_right_and_text_to_the_left(capsys):
    format.print_table(("name", "ms", "note"), [("a", "1.5", "-"), ("longer", "10.0", "-"), ("b", "-", "-")])
    assert capsys.readouterr().out == "name      ms  note\na        1.5  -\nlonger  10.0  -\nb          -  -\n"


def test_on_a_terminal_a_table_fits_it_breaks_between_words_and_failures_have_a_colour(capsys, monkeypatch):
    gates = [Gate(name="champion", passed=False, message="accuracy 85.6% against 96.8% on the same 250 images " * 3)]
    format.print_gates(gates)
    (line,) = capsys.readouterr().out.splitlines()  # not a terminal: one line for each, without colours
    assert line.startswith("FAILED  champion  accuracy 85.6%") and len(line) > 150

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in (("COLUMNS", "60"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    format.print_gates(gates)
    printed = capsys.readouterr().out
    assert printed.startswith("\x1b[1;31mFAILED\x1b[0m  champion  accuracy")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", printed).splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= 60
    assert {word for line in lines[1:] for word in line.split()} <= set(gates[0].message.split())


@pytest.mark.parametrize("columns", [80, 30])
def test_on_a_terminal_no_word_of_a_table_is_cut(capsys, monkeypatch, columns):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    run_id = "0123456789abcdef" * 2
    format.print_versions([version(12, aliases=("champion",), run_id=run_id)], lambda row: 0.96)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert {"version", "accuracy", "12", "champion", "0.9600", run_id} <= set(printed.split())
    lines = printed.splitlines()
    assert columns < 80 or (len(lines) == 2 and max(map(len, lines)) <= columns)


def test_on_a_terminal_a_long_word_in_a_sentence_does_not_widen_the_table(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    run_id = "0123456789abcdef" * 2
    format.print_history([new_event("champion", 1, 2, "promote", f"requested by run {run_id}", done=True)])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80 and run_id in "".join(line[60:].strip() for line in lines)


def test_versions_are_listed_with_aliases_and_accuracy_or_a_dash(capsys):
    def accuracy(row: Version) -> float | None:
        if row.number == 4:
            raise ReleaseError("The store does not hold release.json.")
        return 0.96 if row.number == 12 else None

    rows = [version(12, aliases=("champion", "best"), tags={"test_accuracy": "0.5"}), version(4), version(3)]
    format.print_versions(rows, accuracy)
    printed = capsys.readouterr()
    header, first, second, third = printed.out.splitlines()
    assert header.split() == ["version", "aliases", "accuracy", "created", "(UTC)", "run"]
    assert first.split() == ["12", "champion,", "best", "0.9600", "2026-01-31", "12:00", "abc"]
    assert [second.split()[:3], third.split()[:3]] == [["4", "-", "-"], ["3", "-", "-"]]
    assert printed.err == "Note: the accuracy of version 4 is not known. The store does not hold release.json.\n"


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (1, 2, "champion now points to version 2 (was 1)."),
        (None, 2, "champion now points to version 2."),
        (2, 2, "champion already points to version 2: nothing was changed."),
        (2, None, "champion was removed from version 2."),
    ],
)
def test_a_move_of_an_alias_names_both_versions(before, after, line, capsys):
    format.print_event(new_event("champion", before, after, "promote", ""))
    assert capsys.readouterr().out == f"{line}\n"


def test_the_history_counts_only_the_gates_that_were_required(capsys):
    gates = tuple({"passed": passed, "required": required} for passed, required in ((1, 1), (0, 1), (1, 0)))
    forced = new_event("champion", 1, 2, "promote", "trucks", forced=True, gates=gates, done=True)
    format.print_history([forced, new_event("champion", 2, 1, "rollback", "")])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["when", "who", "what", "alias", "from", "to", "gates", "reason"]
    assert first.split()[2:] == ["promote", "champion", "1", "2", "1/2", "overridden", "trucks"]
    assert second.split()[2:] == ["rollback", "(unfinished)", "champion", "2", "1", "-", "-"]


def test_names_and_reasons_cannot_write_to_a_terminal_nor_forge_a_line(capsys, monkeypatch):
    reason = "good\n2026-01-01T00:00:00Z  eve  promote\r\x1b[2J\x9b31m\u202e<script>" + "x" * 10_000
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # click takes escapes away from what is no terminal
    monkeypatch.setattr(format.shutil, "get_terminal_size", lambda: os.terminal_size((100_000, 30)))
    format.print_history([new_event("champion", 1, 2, "promote", reason, done=True)])
    format.print_field("reason", reason.replace(" ", ""))
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert len(lines) == 3
    assert "good\\n2026" in lines[1] and "\\x1b[2J\\x9b31m\\u202e<script>" in lines[1]
    assert not re.search("\x1b\\[2J|[\r\x9b\u202e]", printed)
    format.print_rows([["x" * 10_000 + "end"]])
    shown = capsys.readouterr().out.rstrip()
    assert len(shown) == format.MAX_CELL and "…" in shown and shown.endswith("end")
    error = str(ReleaseError(f"The class {reason[:60]!s} is unknown."))
    assert "\x1b" not in error and "\\x1b[2J" in error


def test_a_gate_without_a_limit_is_not_called_passed(capsys):
    free = Gate(name="accuracy", passed=True, required=False, message="no limit")
    format.print_gates([free, Gate(name="parity", passed=False, message="3 predictions changed")])
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["not required", "FAILED"]


def test_digests_and_floats_are_shortened_in_a_difference(capsys):
    format.print_differences(
        [
            Difference(section="files", name="a.onnx", before="ab" * 32, after=None),
            Difference(section="metrics", name="loss", before=0.123456789, after=1.0),
        ]
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(f"a.onnx: {'ab' * 8}… -> absent")
    assert second.endswith("loss: 0.123457 -> 1")
    format.print_differences([])
    assert capsys.readouterr().out == "No differences.\n"


def test_a_finding_says_whether_it_was_fixed(capsys):
    finding = {"kind": "broken version", "subject": "toy 2", "message": "a file is missing", "fix": "restore it"}
    format.print_findings([Finding(**finding), Finding(**finding, fixed=True), Finding(**finding, waiting=True)])
    states = [line.split(". ")[1] for line in capsys.readouterr().out.splitlines()]
    assert states == ["to do: restore it", "fixed: restore it", "no action: restore it"]


def test_a_terminal_without_unicode_gets_every_line(tmp_path):
    """A class name that latin-1 lacks, as JSON and as text."""
    make_onnx(tmp_path / "model.onnx", class_names=("猫", "犬", "é"))
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    code = (
        "from pathlib import Path\nfrom types import SimpleNamespace\nfrom vitcifar import cli\n"
        "from vitcifar.cli import serving\nfrom support.serving import make_model\n"
        "import vitcifar.serving.loaded_model as loaded\n"
        "loaded.open_version = lambda *_: make_model(Path('model.onnx'), class_names=('猫', '犬', 'é'))\n"
        "from vitcifar.cli import options\noptions.open_registry = lambda *_: SimpleNamespace()\n"
        "for form in ('json', 'text'):\n"
        "    cli.main(['predict', 'red.png', '--format', form], standalone_mode=False)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, encoding="latin-1"
    )
    assert done.returncode == 0, done.stderr
    as_json, _, as_text = done.stdout.splitlines()
    assert set(json.loads(as_json)["probabilities"]) == {"猫", "犬", "é"}
    assert as_text.startswith("red.png  \\u732b")


def test_a_run_on_a_server_has_one_address_and_a_report_only_if_there_is_one(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    tracking.connect(server)
    with tracking.start_run(experiment="places", output_dir=tmp_path) as run:
        experiment = run.client.get_run(run.run_id).info.experiment_id
    assert capfd.readouterr().out == "", "MLflow prints the address too, to stdout"
    format.print_places(run.run_id, run.folder)
    address = f"{server}/#/experiments/{experiment}/runs/{run.run_id}?workflowType=machine_learning"
    assert capfd.readouterr().err.split() == ["MLflow", address]
    (run.folder / "report.html").touch()
    format.print_places(run.run_id, run.folder)
    assert capfd.readouterr().err.split() == ["report", str(run.folder / "report.html"), "MLflow", address]


def test_an_address_that_is_longer_than_the_terminal_is_not_cut(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    address = "http://127.0.0.1:5000/" + 70 * "a"
    format.print_field("MLflow", address)
    assert capsys.readouterr().out == f"{'MLflow':<15}{address}\n"
