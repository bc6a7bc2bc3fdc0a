"""SECURITY.md tells what is so: every test that its table names exists."""

import ast
import re

import pytest
from support.project import ROOT

SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in SECURITY.partition("## Faults")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| fault or input")
]


def test_the_table_names_a_test_for_every_fault():
    assert len(ROWS) > 30 and {len(row) for row in ROWS} == {3}
    assert [row[0] for row in ROWS if not re.fullmatch(r"(`tests/[\w/]+\.py::test_\w+`(, )?)+", row[2])] == []
    assert len({row[0] for row in ROWS}) == len(ROWS), "no fault stands there twice"


@pytest.mark.parametrize("file", sorted(set(re.findall(r"`(tests/[\w/]+\.py)::", SECURITY))))
def test_every_test_that_the_table_names_exists(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert set(re.findall(rf"`{re.escape(file)}::(\w+)`", SECURITY)) <= defined
