"""The model card of a version: Markdown made of what was recorded and checked, by card.md.j2."""

from pathlib import Path
from typing import Any

from jinja2 import Environment

from vitcifar.errors import printable
from vitcifar.registry.approvals import read_approvals
from vitcifar.registry.benchmark import read_old_tables, read_tables
from vitcifar.registry.gates import read_evaluation
from vitcifar.registry.registry import Version
from vitcifar.registry.verdicts import read_verdicts
from vitcifar.release.manifest import Manifest, served_evaluation

TEMPLATE = Path(__file__).with_name("card.md.j2")


def model_card(version: Version, release: Manifest) -> str:
    """The card of a version and its release in Markdown."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, finalize=one_line)  # Markdown: no HTML escapes
    evaluation, complete = served_evaluation(release), read_evaluation(release)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        version=version,
        release=release,
        accuracy=complete.accuracy_text() if complete else evaluation.get("accuracy"),
        calibration=complete and complete.calibration_text(),
        evaluation=evaluation,
        approvals=read_approvals(version),
        tables=[*read_tables(version).values()],
        old_tables=[*read_old_tables(version).values()],
        verdicts=read_verdicts(version),
    )


def one_line(value: Any) -> str:
    """A value of the template on one line, its `|` escaped: a class name or a reason cannot break a table or a list."""
    return printable(" ".join(str(value).split()).replace("|", "\\|"))
