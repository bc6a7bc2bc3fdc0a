"""What MLflow's pages show of a model and its versions: descriptions in Markdown, and a few short tags.

A description is made again when a promotion or a benchmark changes what it says. One that a person wrote or edited is
kept: ours end with a comment that holds their hash. Nothing reads a number from a description or such a tag.
"""

import hashlib
import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
from jinja2 import Environment
from mlflow.exceptions import MlflowException

from vitcifar.config import TrainConfig, deciding_settings
from vitcifar.errors import DataError, ReleaseError, VitCifarError, listed, redact
from vitcifar.evaluation.compare import compare_evaluations
from vitcifar.registry.benchmark import read_tables
from vitcifar.registry.card import one_line
from vitcifar.registry.diff import compare_sections, flatten
from vitcifar.registry.gates import read_evaluation
from vitcifar.registry.registry import Registry, Version
from vitcifar.registry.verdicts import Verdict, read_verdicts
from vitcifar.release.latency import LatencyTable
from vitcifar.release.manifest import Manifest, index_tags
from vitcifar.tracking import reaching

GATES_TAG = "gates"
MAX_LENGTH = 5000  # characters of a description, in MLflow's databases
MAX_CHANGES = 8  # settings that are named
MARK = "<!-- vitcifar {} -->"  # not shown by MLflow's pages
TEMPLATES = Path(__file__).parent


def describe_model(release: Manifest) -> str:
    """What the models of a release are, and how to serve them."""
    commands = _commands(release.model_name, "champion", ("app --version champion",))
    return _render("model.md.j2", release=release, commands=commands)


def describe_version(
    version: Version,
    release: Manifest,
    before: Manifest | None = None,
    tables: Sequence[LatencyTable] = (),
    verdicts: Sequence[Verdict] = (),
) -> str:
    """The summary of a version: scores, data, gates, latency, and what changed against the version `before`."""
    index, number = index_tags(release), version.number
    return _render(
        "version.md.j2",
        version=version,
        release=release,
        evaluation=read_evaluation(release),
        index=index,
        rows=[(table.machine, row) for table in tables for row in table.rows if row.format == index["serves"]],
        verdict=verdicts[-1] if verdicts else None,
        gates=summarize(verdicts),
        before=before,
        changes=_changes(before, release) if before else "",
        commands=_commands(version.model_name, str(number), (f"show {number}", f"app --version {number}")),
    )


def summarize(verdicts: Sequence[Verdict]) -> str:
    """The last attempt to promote a version, for example "champion: passed 5/5"."""
    if not verdicts:
        return "not checked"
    last = verdicts[-1]
    required = [gate for gate in last.gates if gate.required or not gate.passed]
    failed = [gate.name for gate in required if not gate.passed]
    text = f"{last.alias}: {last.outcome} {len(required) - len(failed)}/{len(required)}"
    return f"{text}, failed {', '.join(failed)}" if failed else text


def update(registry: Registry, number: int) -> None:
    """Make the description and the short tags of a version again; warns when the store does not take them."""
    try:
        with reaching(mlflow.get_tracking_uri()):
            versions = registry.list()
            version = registry.find(number, versions)
            release, verdicts = registry.manifest(version), read_verdicts(version)
            for key, value in {**index_tags(release), GATES_TAG: summarize(verdicts)}.items():
                if version.tags.get(key) != value:
                    registry.tag(number, key, value)
            if not is_ours(version.description):
                return
            before = previous(registry, version, versions)
            text = describe_version(version, release, before, [*read_tables(version).values()], verdicts)
            if text != version.description:
                registry.client.update_model_version(registry.model_name, str(number), text)
    except ReleaseError:
        return  # incomplete, as the gate `files` and the doctor say
    except (VitCifarError, MlflowException) as error:
        warnings.warn(f"MLflow's page of {registry.model_name} {number} is not up to date: {error}", stacklevel=2)


def update_model(registry: Registry, release: Manifest) -> None:
    """Describe the registered model by its newest release, unless a person did."""
    with reaching(mlflow.get_tracking_uri()):
        known = registry.client.get_registered_model(registry.model_name).description or ""
        if is_ours(known) and known != (text := describe_model(release)):
            registry.client.update_registered_model(registry.model_name, text)


def previous(registry: Registry, version: Version, versions: Sequence[Version]) -> Manifest | None:
    """The release of the version before this one; None without one, or if it cannot be read."""
    older = [other for other in versions if other.number < version.number and other.digest and not other.broken]
    try:
        return registry.manifest(older[0]) if older else None
    except VitCifarError:
        return None


def is_ours(text: str) -> bool:
    """Whether a description is empty, or as vitcifar wrote it."""
    body, mark, _ = text.rpartition(MARK.partition("{")[0])
    return not text.strip() or (bool(mark) and text == _marked(body))


def _marked(body: str) -> str:
    return body + MARK.format(hashlib.sha256(body.encode()).hexdigest()[:8])


def _render(template: str, **values: Any) -> str:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, finalize=one_line)  # Markdown: no HTML escapes
    text = environment.from_string((TEMPLATES / template).read_text(encoding="utf-8")).render(**values)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n\n"
    return _marked(text[: MAX_LENGTH - len(MARK) - 8])


def _changes(before: Manifest, after: Manifest) -> str:
    """What the version before was, in one line: the paired comparison if both saw the same images, and settings."""
    parts, ours, theirs = [], read_evaluation(after), read_evaluation(before)
    if ours and theirs:
        try:
            parts.append(compare_evaluations(ours, theirs).summary().partition("; detecting")[0])
        except DataError:
            parts.append(f"tested on other images (accuracy {theirs.accuracy:.1%} there)")
    if before.fingerprint != after.fingerprint:
        parts.append("other data")
    names = deciding_settings()
    left, right = ({k: v for k, v in one.config.items() if k in names} for one in (before, after))
    rows = [
        f"{row.name} {row.before} -> {row.after}" for row in compare_sections("config", flatten(left), flatten(right))
    ]
    parts.append(f"settings: {listed(rows, MAX_CHANGES)}" if rows else "the same settings")
    return "; ".join(parts)


def _commands(model_name: str, spec: str, own: Sequence[str]) -> list[str]:
    """Commands of vitcifar and MLflow's server for a version, which work wherever the store can be reached."""
    uri, option = mlflow.get_tracking_uri(), ""
    if model_name != TrainConfig.model_name:
        option = f" --model-name {shlex.quote(model_name)}"
    model = f"models:/{model_name}/{spec}" if spec.isdecimal() else f"models:/{model_name}@{spec}"
    return [
        # The address of a database holds a password.
        *([f"export MLFLOW_TRACKING_URI={shlex.quote(redact(uri))}"] if uri.startswith(("sqlite:", "http")) else []),
        *(f"vitcifar {command}{option}" for command in own),
        f"mlflow models serve -m {shlex.quote(model)} --env-manager local --port 5001",
    ]
