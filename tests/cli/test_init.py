"""What the program does for every command: paths at home, encodings of the terminal, one-line errors."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from support.project import ROOT
from support.toys import make_onnx

from vitcifar.cli.options import at_home


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--sheet=~/p.png", "--sheet=/home/ann/p.png"),
        ("~/p.png", "/home/ann/p.png"),
        ("--reason=a=~/b", "--reason=a=~/b"),
        ("~", "~"),
        ("a~/b", "a~/b"),
    ],
)
def test_a_path_at_home_is_expanded_as_the_shell_does(monkeypatch, word, expected):
    monkeypatch.setenv("HOME", "/home/ann")
    assert at_home(word) == expected


def test_a_terminal_without_unicode_gets_every_line(tmp_path):
    """A class name that latin-1 lacks, as JSON and as text; and the ellipsis of a message."""
    make_onnx(tmp_path / "model.onnx", class_names=("猫", "犬", "é"))
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    code = (
        "import sys, json\nfrom pathlib import Path\nfrom vitcifar import cli\n"
        "from vitcifar.cli import registry\nfrom support.serving import make_model\n"
        "import vitcifar.serving.loaded_model as loaded\n"
        "loaded.open_version = lambda *_: make_model(Path('model.onnx'), class_names=('猫', '犬', 'é'))\n"
        "from vitcifar.cli import options\noptions.open_registry = lambda *_: None\n"
        "cli.main(['predict', 'red.png', 'none…png', *sys.argv[1:]])"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    for form in ("json", "text"):
        command = [sys.executable, "-c", code, "--format", form]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="latin-1")
        assert "Traceback" not in done.stderr, done.stderr
        if form == "json":
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            assert set(rows[0]["probabilities"]) == {"猫", "犬", "é"}
        else:
            assert "\\u732b" in done.stdout
